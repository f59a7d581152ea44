"""Synthetic inputs of a quantized model, drawn from the ranges of its input quantizers."""

from __future__ import annotations

import keras
import numpy as np

from tfcompress.model.graph import Graph, Value
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.integer_inputs import ToFloat
from tfcompress.quantization.placement.from_graph import readers_past_marks


def synthetic_inputs(model: keras.Model, count: int, seed: int = 0) -> list[np.ndarray] | None:
    """Draws inputs whose valid range the model tells.

    A float input gets uniform values on the grid of the quantizer that reads it; an integer input
    gets uniform token numbers of the smallest `Embedding` that reads it.

    Args:
        model: A quantized functional model with known ranges.
        count: Number of samples.
        seed: Seed of the draw.

    Returns:
        One array of shape `(count, ...)` per input; `None` where the range of an input is unknown.
    """
    graph = Graph.from_model(model)
    rng = np.random.default_rng(seed)
    arrays = []
    for value in graph.flat_inputs:
        array = None if None in value.shape[1:] else _draw(graph, value, count, rng)
        if array is None:
            return None
        arrays.append(array)
    return arrays


def _draw(graph: Graph, value: Value, count: int, rng: np.random.Generator) -> np.ndarray | None:
    shape = (count, *(size for size in value.shape[1:] if size is not None))
    readers = [node.operation for node in readers_past_marks(graph, value)]
    for quantizer in readers:
        if isinstance(quantizer, FakeQuantize) and float(quantizer.scale.numpy()) > 0:
            low, high = quantizer.range
            steps = 2**quantizer.scheme.num_bits - 1 - quantizer.scheme.narrow_range
            codes = rng.integers(0, steps, shape, endpoint=True)
            return (low + codes * ((high - low) / steps)).astype(np.float32)
    if value.spec.dtype == "uint8" and any(isinstance(op, ToFloat) for op in readers):
        return rng.integers(0, 255, shape, np.uint8, endpoint=True)
    tables = [op for op in readers if isinstance(op, keras.layers.Embedding)]
    if tables and not value.is_float:
        tokens = rng.integers(0, min(table.input_dim for table in tables), shape)
        return tokens.astype(value.spec.dtype)
    return None
