"""What a net of `benchmarks.nets` is trained for: its data, its loss and its measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
    """Samples of one task.

    Attributes:
        inputs: One array per input of the model, in its order.
        targets: What the loss is given: an array, or a dict of arrays by output.
        extra: What only the measure reads.
    """

    inputs: Sequence[np.ndarray]
    targets: Any
    extra: Any = None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def first(self, count: int) -> list[np.ndarray]:
        """The inputs of the first samples."""
        return [array[:count] for array in self.inputs]


#: Outputs by name, (samples, ...) each.
Outputs = Mapping[str, np.ndarray]
#: Inputs, one array each → outputs by name.
Predict = Callable[[Sequence[np.ndarray]], Outputs]


@dataclasses.dataclass(frozen=True)
class Task:
    """A net and what it is trained for.

    Attributes:
        name: Of the net.
        about: The net and its data, for the table.
        metric: What `score` gives, with its unit. More is better.
        load: Folder of the data → training and test split.
        build: Training split → the float model, untrained but for what it is transferred from.
        loss: Makes the loss, or a dict of losses by output.
        score: Predictions of the test inputs, and the test split → the measure.
        epochs: Of the float model.
        extra_epochs: Of the quantized one, which starts from the float one, and of the control.
        learning_rate: Where the cosine of the float model starts.
        extra_learning_rate: Likewise for the extra epochs.
        batch_size: Samples of a step.
        sequence: Makes the model of whole sequences that trains a model of one step; `None` where
            the model trains as it is.
        step_inputs: Model of one step, sequences → samples of its inputs, for calibration.
        predict: Runs a model of one step, given as a function, over the test sequences.
    """

    name: str
    about: str
    metric: str
    load: Callable[[str | None], tuple[Split, Split]]
    build: Callable[[Split], keras.Model]
    loss: Callable[[], Any]
    score: Callable[[Outputs, Split], float]
    epochs: int
    extra_epochs: int
    learning_rate: float = 2e-3
    extra_learning_rate: float = 3e-4
    batch_size: int = 64
    sequence: Callable[[keras.Model], keras.Model] | None = None
    step_inputs: Callable[[keras.Model, Split, int], list[np.ndarray]] | None = None
    predict: Callable[[Predict, Split], Outputs] | None = None


def cross_entropy() -> keras.losses.Loss:
    """Of class numbers and logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def accuracy(outputs: Outputs, test: Split) -> float:
    """Share of samples, in percent, whose largest logit is that of their class."""
    (logits,) = outputs.values()
    return 100 * float(np.mean(logits.argmax(-1) == test.targets))


def signal_to_noise(outputs: Outputs, test: Split) -> float:
    """Peak signal-to-noise ratio of images in 0..1, in dB."""
    (images,) = outputs.values()
    return -10 * float(np.log10(np.mean((np.clip(images, 0, 1) - test.targets) ** 2)))
