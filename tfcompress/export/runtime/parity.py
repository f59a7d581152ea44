"""Parity: the file's integer outputs against the Keras model's, in output steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import tree

from tfcompress.export.runtime.codes import TensorInfo
from tfcompress.export.runtime.runner import Runner
from tfcompress.model.graph import Graph, input_structure
from tfcompress.model.inference import fixed_batch_size

# Values of all tensors of an eager batch together, which stay in memory until its end: half a GB.
_EAGER_VALUES = 128 * 2**20
# From this many batches on a trace, which takes as long as some seven eager runs, is cheaper.
_EAGER_BATCHES = 6
_TRACED_BATCH = 32


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


def lowest_agreement(parity: Mapping[str, Sequence[Parity]]) -> float | None:
    """Smallest share of equal output steps over all outputs; `None` where none was compared."""
    shares = [p.equal for outputs in parity.values() for p in outputs]
    return min(shares) if shares else None


def compare_outputs(
    expected: Sequence[np.ndarray],
    codes: Mapping[str, np.ndarray],
    runner: Runner,
    output_names: Sequence[str],
) -> list[Parity]:
    """Compares what a model and a file give for the same samples.

    Args:
        expected: The model's flat outputs.
        codes: Output name → the file's codes.
        runner: The file's signature.
        output_names: The file's names of the model's flat outputs.
    """
    return [
        _compare(name, values, codes[name], runner.outputs[name])
        for name, values in zip(output_names, expected, strict=True)
    ]


def run_model(model: keras.Model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The model's flat outputs, in inference.

    A quantized model takes seconds to trace and optimize, several times what its run takes. So a
    few batches run eagerly, as large as memory allows; only many are worth a trace.
    """
    count = len(inputs[0])
    fixed = fixed_batch_size(model.inputs)
    batch_size = fixed or max(1, _EAGER_VALUES // values_per_sample(model))
    structure = input_structure(model)
    if count > _EAGER_BATCHES * batch_size:
        # All batches of one size: for a smaller last one TensorFlow would trace the model again.
        batch_size = fixed or min(_TRACED_BATCH, count)
        missing = -count % batch_size
        padded = [np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) for x in inputs]
        structured = tree.pack_sequence_as(structure, padded)
        outputs = model.predict(structured, batch_size=batch_size, verbose=0)
        return [np.asarray(y)[:count] for y in tree.flatten(outputs)]
    batches = []
    for i in range(0, count, batch_size):
        batch = [keras.ops.convert_to_tensor(x[i : i + batch_size]) for x in inputs]
        outputs = model(tree.pack_sequence_as(structure, batch), training=False)
        batches.append([np.asarray(y) for y in tree.flatten(outputs)])
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def values_per_sample(model: keras.Model) -> int:
    """Values of all tensors that calls of the model's operations give, for one sample."""
    nodes = Graph.from_model(model).nodes
    shapes = [value.shape[1:] for node in nodes for value in node.outputs]
    return max(1, sum(math.prod(n or 1 for n in shape) for shape in shapes))


def _compare(name: str, expected: np.ndarray, codes: np.ndarray, info: TensorInfo) -> Parity:
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
