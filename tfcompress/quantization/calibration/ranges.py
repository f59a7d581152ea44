"""Calibration: ranges from data, before any training.

The model runs in float, and every quantizer's observer gets the values of its tensor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model import inference
from tfcompress.model.batches import check_ends, input_batches
from tfcompress.model.graph import Graph, input_structure, is_functional
from tfcompress.model.progress import Progress
from tfcompress.quantization.calibration.bias_correction import BiasCorrection
from tfcompress.quantization.calibration.diagnosis import Observed, calibration_problems
from tfcompress.quantization.calibration.in_float import in_float, observed_by
from tfcompress.quantization.calibration.limits import extreme_operands, extreme_sums
from tfcompress.quantization.calibration.table_ranges import limit_tables
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.observers import MinMax

# An observer gets at most this many values of a tensor; more would not change a quantile.
_SAMPLE = 500_000
# Values of an input or output that are kept to see how they use the codes, give or take a batch.
_KEPT = 200_000
# Numbers that a batch holds at a time while the model runs: 64 MB. Larger batches are cut.
_HELD_VALUES = 16 * 2**20


def calibration_batches(model: keras.Model, data: Any, *, limit: int | None = None) -> list:
    """Cuts calibration data into batches of the model's input structure, and checks them.

    Args:
        model: The model whose inputs the data must fit.
        data: As `input_batches` takes them.
        limit: Most batches to read from an iterable.

    Raises:
        TypeError: Neither arrays nor iterable.
        ValueError: No data, a shape that does not fit, NaN or infinite values.
    """
    if limit is None:
        check_ends(data, "calibration_data")
    inputs = input_structure(model) if is_functional(model) else None
    batches = []
    for batch in itertools.islice(input_batches(data, inputs), limit):
        if inputs is not None:
            batch = tree.map_structure(np.asarray, batch)
            _check_finite(batch, inputs)
        batches.append(batch)
    if not batches:
        raise ValueError("Expected calibration data with at least one sample. Received: none.")
    return batches


def calibrate(
    model: keras.Model,
    batches: list,
    *,
    only: Sequence[FakeQuantize] | None = None,
    correct_biases: bool = False,
) -> None:
    """Sets the range of every quantizer of `model` from batches of inputs.

    Args:
        model: A quantized model; its variables other than ranges are untouched, but for biases
            that are corrected.
        batches: As `calibration_batches` gives them.
        only: The quantizers whose ranges to set; all of them by default.
        correct_biases: Correct the biases too (see `BiasCorrection`). The ranges are then those of
            the float model, which the corrected one is close to; else weights are rounded already.

    Warns:
        UserWarning: Ranges that waste codes or hint at a fault (see `calibration_problems`), and
            layers that the runtime cannot run with them (see `extreme_sums`, `extreme_operands`).
    """
    quantizers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
    wanted = quantizers if only is None else only
    graph = Graph.from_model(model)
    outputs = _output_quantizers(graph)
    most = inference.rows_at_a_time(graph, _HELD_VALUES)
    parts = [part for batch in batches for part in inference.split(batch, most)]
    collectors = {
        q: _Collector(q, len(parts), keeps=q.rounds_input or q in outputs)
        for q in wanted
        if q.fixed_range is None
    }
    correction = BiasCorrection(graph, parts) if correct_biases else None
    with contextlib.ExitStack() as stack:
        if correction is not None:
            stack.enter_context(in_float(model))
        stack.enter_context(observed_by({q: collectors.get(q, _ignore) for q in quantizers}))
        progress = stack.enter_context(Progress("calibration", len(parts)))
        for i, part in enumerate(parts):
            for collector in collectors.values():
                collector.start_batch()
            call = inference.call_in_inference
            if correction is not None and i in correction.chosen:
                call = correction.call_measured
            inference.run(graph, part, call)
            progress.advance()
    for quantizer, collector in collectors.items():
        if collector.count:
            quantizer.set_range(*collector.estimate())
    if correction is not None:
        correction.correct()
    observed = {q: c.observed() for q, c in collectors.items() if c.count}
    for quantizer, (low, high) in limit_tables(model, set(observed)).items():
        observed[quantizer] = dataclasses.replace(observed[quantizer], low=low, high=high)
    problems = calibration_problems(model, observed)
    refused = extreme_sums(model) + extreme_operands(model)
    problems += [f"Such a layer cannot be exported: {p}." for p in refused]
    for problem in problems:
        warnings.warn(problem, UserWarning, stacklevel=3)


def _output_quantizers(graph: Graph) -> set[FakeQuantize]:
    makers = [value.node.operation for value in graph.flat_outputs if value.node is not None]
    return {maker for maker in makers if isinstance(maker, FakeQuantize)}


def first_samples(batches: list, most: int | None = None) -> list[np.ndarray]:
    """The first samples of calibration batches, one array per input of the model."""
    flat = [tree.flatten(batch) for batch in batches]
    return [np.concatenate(arrays)[:most] for arrays in zip(*flat, strict=True)]


def _ignore(values: tf.Tensor) -> None:
    pass


class _Collector:
    """Gathers what one observer needs: the extremes of all batches, or a sample of the values.

    With `keeps` also some values by channel, to see how they use the codes.
    """

    def __init__(self, quantizer: FakeQuantize, num_batches: int, *, keeps: bool = False):
        self.scheme = quantizer.scheme
        # Every value counts for the extremes, and a sample might miss them.
        self.needs_sample = type(self.scheme.observer).estimate is not MinMax.estimate
        self.count = 0
        self.low, self.high = np.inf, -np.inf
        self.samples: list[np.ndarray] = []
        # One entry for each tensor of a batch.
        self.calls: list[tuple[float, float]] = []
        self._call = 0
        self._keeps = keeps
        self._kept: list[np.ndarray] = []
        self._share = _SAMPLE // num_batches
        self._random = np.random.default_rng(0)

    def start_batch(self) -> None:
        self._call = 0

    def __call__(self, values: tf.Tensor) -> None:
        values = np.asarray(values, np.float32)
        if not values.size:
            return
        self.count += 1
        if self._keeps and sum(array.size for array in self._kept) < _KEPT:
            rows = values.reshape(-1, values.shape[-1])
            self._kept.append(rows[: 1 + _KEPT // rows.shape[-1]].copy())
        values = values.ravel()
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._call < len(self.calls):
            earlier = self.calls[self._call]
            self.calls[self._call] = min(earlier[0], low), max(earlier[1], high)
        else:
            self.calls.append((low, high))
        self._call += 1
        if self.needs_sample:
            if values.size > self._share:
                values = self._random.choice(values, self._share, replace=False)
            self.samples.append(values)

    def observed(self) -> Observed:
        widths = {array.shape[-1] for array in self._kept}
        # Tensors of different widths have no channels in common.
        kept = self._kept if len(widths) < 2 else [array.reshape(-1, 1) for array in self._kept]
        values = np.concatenate(kept) if kept else None
        return Observed(self.low, self.high, tuple(self.calls), values)

    def estimate(self) -> tuple[float, float]:
        if not self.needs_sample:
            return self.low, self.high
        values = np.concatenate(self.samples)
        if values.size > _SAMPLE:
            values = self._random.choice(values, _SAMPLE, replace=False)
        levels = 2**self.scheme.num_bits - 1 - self.scheme.narrow_range
        return self.scheme.observer.estimate(values, levels, self.scheme.symmetric)


def _check_finite(batch: Any, inputs: Any) -> None:
    for array, value in zip(tree.flatten(batch), tree.flatten(inputs), strict=True):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"Expected finite calibration data for the input {value.name!r}. Received: NaN "
                "or infinite values. Clean the data: one such value would spoil every range."
            )
