"""Finetuning of a candidate, by default with the float model as its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.analysis.measuring.measures import Kind
from tfcompress.analysis.recipes.objective import objective_of, trains_itself
from tfcompress.distillation import Distiller
from tfcompress.model.batches import line_up
from tfcompress.model.graph import input_structure


def finetune(
    model: keras.Model,
    teacher: keras.Model,
    data: Any,
    *,
    kinds: Sequence[Kind],
    epochs: int,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    distill: bool = True,
    distillation: Mapping[str, float] | None = None,
    optimizer: Callable[[Any], keras.optimizers.Optimizer] = keras.optimizers.Adam,
    learning_rate_schedule: str = "cosine",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int = 0,
    verbose: int = 0,
) -> None:
    """Trains a model, by default by Adam, with a learning rate that falls by half a cosine.

    The loss of each output and its weight are those that the teacher was compiled with; of a
    teacher that is not compiled, cross-entropy where its output is class scores. With `distill`
    the distance of each output from the teacher's is added, with the same weight; see
    `Objective.lessons`. A model of a class with a train step of its own is trained by that alone.

    Args:
        model: The model to train.
        teacher: The float model.
        data: `(x, y)` as arrays, or batches as for `fit`.
        kinds: What each output of the teacher holds.
        epochs: Passes over the data, 0 or more.
        learning_rate: At the beginning.
        batch_size: Of arrays.
        distill: Whether the teacher takes part.
        distillation: `"temperature"`, `"weight"` of the teacher and `"labels"`, the weight of the
            compiled loss; 1 each by default. With `"labels"` 0 the data needs none.
        optimizer: Learning rate, or its schedule → the optimizer.
        learning_rate_schedule: `"cosine"`, which ends at 0, or `"constant"`.
        callbacks: For `fit`.
        seed: Of the order of samples.
        verbose: As for `fit`.
    """
    if epochs < 1:
        return
    keras.utils.set_random_seed(seed)
    batches, steps = training_batches(data, model, batch_size, seed)
    objective = objective_of(teacher, kinds)
    student = model
    given = {"temperature": 1.0, "weight": 1.0, "labels": 1.0, **(distillation or {})}
    lessons = objective.lessons(given["temperature"]) if distill else []
    if lessons and not trains_itself(model):
        student = Distiller(
            teacher,
            model,
            [loss for loss, _ in lessons],
            loss_weights=[given["weight"] * weight for _, weight in lessons],
            student_loss_weight=given["labels"],
        )
    rate: Any = learning_rate
    if steps is not None and learning_rate_schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    student.compile(optimizer(rate), **objective.compile_arguments(model))
    # Keras warns where a dataset, which has an order of its own, is asked to be shuffled.
    order = {} if isinstance(batches, keras.utils.PyDataset) else {"shuffle": False}
    student.fit(batches, epochs=epochs, callbacks=list(callbacks), verbose=verbose, **order)


def training_batches(
    data: Any, model: keras.Model, batch_size: int, seed: int = 0
) -> tuple[Any, int | None]:
    """`(data for fit, steps of an epoch)`; arrays are shuffled, and cast in batches."""
    inputs = input_structure(model)
    specs = tree.flatten(inputs)
    samples = _all_samples(data, len(specs))
    if samples is None:
        data = _Batches(data) if isinstance(data, list) else data
        length = getattr(data, "__len__", None)
        try:
            return data, int(length()) if length is not None else None
        except TypeError:
            return data, None

    def cast(x: tuple, *rest: Any) -> tuple:
        arrays = [tf.cast(a, s.dtype) for a, s in zip(x, specs, strict=True)]
        return (_as_tuples(tree.pack_sequence_as(inputs, arrays)), *rest)

    x, *rest = samples
    columns = tuple(line_up(x, inputs))
    count = len(columns[0])
    size = min(batch_size, count)
    given = (columns, *(part for part in rest if part is not None))
    arrays = tree.map_structure(np.asarray, given)
    batches = tf.data.Dataset.from_tensor_slices(_as_tuples(arrays)).shuffle(count, seed=seed)
    return batches.batch(size, drop_remainder=True).map(cast).prefetch(2), count // size


def _as_tuples(value: Any) -> Any:
    """A structure with tuples for lists, which TensorFlow takes for one tensor."""
    if isinstance(value, Mapping):
        return {key: _as_tuples(item) for key, item in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


class _Batches(keras.utils.PyDataset):
    """A list of batches, which the `fit` of Keras does not take."""

    def __init__(self, batches: Sequence[Any]) -> None:
        super().__init__()
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        return _as_tuples(self._batches[index])


def _all_samples(data: Any, count: int) -> tuple | None:
    """Data that are arrays as `(x, ...)`; `None` for batches.

    Args:
        data: Training data.
        count: How many inputs the model has.
    """
    if isinstance(data, tuple):
        return data if _are_arrays(data) else None
    is_inputs = isinstance(data, list) and len(data) == count > 1 and _are_arrays(data)
    is_array = isinstance(data, np.ndarray | Mapping) or tf.is_tensor(data)
    return (data,) if is_inputs or is_array else None


def _are_arrays(data: Any) -> bool:
    return all(part is None or hasattr(part, "shape") for part in tree.flatten(data))
