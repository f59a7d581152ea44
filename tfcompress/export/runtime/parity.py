"""Parity: the file's integer outputs beside the Keras model's, in output steps."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
from keras import tree

from tfcompress.export.runtime.runner import Runner
from tfcompress.model.graph import input_structure


@dataclasses.dataclass(frozen=True)
class Parity:
    """How one output of the file agrees with the model.

    Attributes:
        output: Its name.
        equal: Share of values at the same output step.
        within_one: Share of values at most one step off.
        largest: Largest difference, in steps.
        top1: Share of samples with the same largest value along the last axis; `None` where that
            axis has one value.
        distinct: How many different output codes the samples cover: few prove little.
        samples: How many samples were run.
    """

    output: str
    equal: float
    within_one: float
    largest: float
    top1: float | None
    distinct: int
    samples: int


def measure_parity(
    model: keras.Model,
    runner: Runner,
    inputs: list[np.ndarray],
    output_names: list[str],
    *,
    batch_size: int = 32,
) -> list[Parity]:
    """Runs both on the same samples.

    Args:
        model: The model, in inference, float32.
        runner: The file's signature.
        inputs: One array per input of the model, in its order.
        output_names: The file's names of the model's flat outputs.
    """
    count = len(inputs[0])
    # All batches of one size: for a smaller last one TensorFlow would trace the model again.
    missing = -count % min(batch_size, count)
    padded = [np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) for x in inputs]
    structured = tree.pack_sequence_as(input_structure(model), padded)
    outputs = model.predict(structured, batch_size=batch_size, verbose=0)
    outputs = tree.map_structure(lambda y: y[:count], outputs)
    names = [t.name for t in model.inputs]
    codes = runner.run_codes(dict(zip(names, inputs, strict=True)))
    results = []
    for name, expected in zip(output_names, tree.flatten(outputs), strict=True):
        results.append(_compare(name, np.asarray(expected), codes[name], runner.outputs[name]))
    return results


def _compare(name: str, expected: np.ndarray, codes: np.ndarray, info) -> Parity:
    if info.is_quantized:
        steps = np.round(expected.astype(np.float64) / info.scale) + info.zero_point
        limits = np.iinfo(info.dtype)
        steps = np.clip(steps, limits.min, limits.max)
        difference = np.abs(steps - codes.astype(np.float64))
    else:
        # A float output has no steps; one step is then 1/255 of what the model's outputs span.
        span = float(expected.max() - expected.min()) or 1.0
        steps = expected
        difference = np.abs(expected - codes) / (span / 255)
        difference = np.where(difference < 0.5, 0.0, difference)
    top1 = None
    if codes.ndim > 1 and codes.shape[-1] > 1:
        # Equal largest codes are a tie that either side may break: agreement is that the file's
        # choice is among the model's largest.
        choice = codes.argmax(-1)[..., None]
        chosen = np.take_along_axis(steps, choice, -1)[..., 0]
        top1 = float(np.mean(chosen >= steps.max(-1)))
    return Parity(
        name,
        float(np.mean(difference == 0)),
        float(np.mean(difference <= 1)),
        float(difference.max(initial=0)),
        top1,
        int(np.unique(codes).size),
        int(codes.shape[0]),
    )
