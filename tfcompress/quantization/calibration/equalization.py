"""Cross-layer equalization: channels of like range, by moving scale from a layer to the next."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.model import inference
from tfcompress.model.compressed import compressed_class, is_compressed
from tfcompress.model.graph import Graph, Node
from tfcompress.model.kernels import layer_kernels
from tfcompress.model.rewrite import rebuild
from tfcompress.model.transforms import KEEP_MASK
from tfcompress.quantization.operators.registry import (
    Role,
    activation_name,
    activation_of,
    keras_class,
    role,
)

# Functions f with f(s · x) = s · f(x) for s > 0, which let a factor through.
_HOMOGENEOUS = ("linear", "relu", "leaky_relu")
# Calls that treat every channel alike and let a factor through.
_CHANNEL_WISE = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
)

# Numbers that a batch holds at a time while the model runs: 64 MB.
_HELD_VALUES = 16 * 2**20


@dataclasses.dataclass(eq=False)
class _Pair:
    """Two kernels between which every call lets a factor through, up to a ceiling at most.

    Attributes:
        first: The layer whose outputs are divided.
        batch_norm: The batch norm that follows it, if any.
        second: The layer whose inputs are multiplied.
        ceilings: Call → the largest value that it lets through (a ReLU6 has 6).
        smallest: Per channel, the smallest factor to divide by; without ceilings 0.
        fixed: Per channel, whether it reaches a ceiling and must stay as it is.
    """

    first: keras.Layer
    batch_norm: keras.Layer | None
    second: keras.Layer
    ceilings: dict[Node, float]
    smallest: np.ndarray | float = 0.0
    fixed: np.ndarray | bool = False


def equalize(
    model: keras.Model, *, passes: int = 3, batches: Sequence[Any] | None = None
) -> keras.Model:
    """Returns a copy of `model` that computes the same with more even channel ranges.

    For two layers with only homogeneous calls between them, channel i of the first is divided by
    sᵢ = √(r¹ᵢ · r²ᵢ) / r²ᵢ and the inputs i of the second are multiplied by it, where r are the
    largest absolute weights of the channel, batch norm folded in (Nagel et al. 2019, "Data-Free
    Quantization", eq. 11).

    A ReLU6 lets a factor through as long as its ceiling is not reached. So with data a channel
    whose largest value is mᵢ < 6 is divided by no less than mᵢ / 6, and one that reaches 6 stays as
    it is: on these data the copy computes the same. Without data such pairs stay as they are.

    Args:
        model: A float functional model; it is left untouched.
        passes: How often the chain of pairs is gone through.
        batches: Calibration batches in the structure of the model's inputs.

    Raises:
        ValueError: A subclassed or unbuilt model.

    Warns:
        UserWarning: A ReLU6 keeps layers, or most of their channels, as they are.
    """
    copy = rebuild(Graph.from_model(model), model_class=keras.Model)
    graph = Graph.from_model(copy)
    pairs = list(_pairs(graph))
    if batches is not None:
        _measure_ceilings(graph, pairs, batches)
    _warn_of_ceilings(pairs, measured=batches is not None)
    if batches is None:
        pairs = [pair for pair in pairs if not pair.ceilings]
    for _ in range(passes):
        for pair in pairs:
            _equalize_pair(pair)
    return copy


def _pairs(graph: Graph) -> Iterator[_Pair]:
    """Yields the pairs that nothing else reads between."""
    for node in graph.nodes:
        if not _is_kernel(graph, node):
            continue
        layer, batch_norm = node.operation, None
        ceilings: dict[Node, float] = {}
        activation = activation_name(layer.activation)
        if activation == "relu6":
            ceilings[node] = 6.0
        elif activation not in _HOMOGENEOUS:
            continue
        follower = graph.sole_consumer(node.output)
        if follower is not None and _is_batch_norm(graph, follower):
            if activation != "linear":
                continue
            batch_norm = follower.operation
            follower = graph.sole_consumer(follower.output)
        while follower is not None and (ceiling := _ceiling(follower)) is not None:
            if ceiling < np.inf:
                ceilings[follower] = ceiling
            follower = graph.sole_consumer(follower.output)
        if follower is None or not _is_kernel(graph, follower):
            continue
        # Behind a flatten, say, the channels are others.
        if _channels(layer) == _input_channels(follower.operation):
            yield _Pair(layer, batch_norm, follower.operation, ceilings)


def _measure_ceilings(graph: Graph, pairs: Sequence[_Pair], batches: Sequence[Any]) -> None:
    """Finds the channels that reach a ceiling, and how far the others stay below."""
    largest: dict[Node, np.ndarray] = {}
    wanted = {node for pair in pairs for node in pair.ceilings}
    if not wanted:
        return

    def call(node: Node, args: tuple, kwargs: dict) -> Any:
        outputs = inference.call_in_inference(node, args, kwargs)
        if node in wanted:
            found = np.asarray(outputs, np.float32)
            found = found.max(tuple(range(found.ndim - 1)))
            largest[node] = np.maximum(largest.get(node, found), found)
        return outputs

    rows = inference.rows_at_a_time(graph, _HELD_VALUES)
    for batch in batches:
        for part in inference.split(batch, rows):
            inference.run(graph, part, call)
    for pair in pairs:
        for node, ceiling in pair.ceilings.items():
            share = largest[node] / ceiling
            pair.fixed = pair.fixed | (share >= 1)
            pair.smallest = np.maximum(pair.smallest, share)


def _warn_of_ceilings(pairs: Sequence[_Pair], *, measured: bool) -> None:
    if measured:
        found = [p.first.name for p in pairs if p.ceilings and np.mean(p.fixed) > 0.5]
        reason = (
            "most of their channels reach the ceiling of the ReLU6 behind them on the calibration "
            "data, and these channels stay as they are"
        )
    else:
        found = [p.first.name for p in pairs if p.ceilings]
        reason = (
            "a ReLU6 follows, which lets no factor through beyond its ceiling; calibration_data "
            "tell which channels stay below it"
        )
    if found:
        names = ", ".join(found[:8]) + (", …" if len(found) > 8 else "")
        warnings.warn(
            f"Equalization changes little at {names}: {reason}. With ReLU in place of ReLU6 in the "
            "float model, trained on a little, all channels can be equalized.",
            UserWarning,
            stacklevel=4,
        )


def _is_kernel(graph: Graph, node: Node) -> bool:
    operation = node.operation
    if not isinstance(operation, keras.Layer) or role(operation) is not Role.KERNEL:
        return False
    grouped = getattr(operation, "groups", 1) != 1
    multiplied = getattr(operation, "depth_multiplier", 1) != 1
    known = compressed_class(operation) is not None and not _has_codebook(operation)
    return known and not grouped and not multiplied and len(graph.calls(operation)) == 1


def _has_codebook(operation: Any) -> bool:
    """Whether what the layer computes with is not its kernel alone, which could be scaled."""
    chains = operation.transforms.values() if is_compressed(operation) else ()
    return any(transform.order > KEEP_MASK for chain in chains for transform in chain)


def _is_batch_norm(graph: Graph, node: Node) -> bool:
    operation = node.operation
    is_norm = keras_class(operation) is layers.BatchNormalization and role(operation) is Role.AFFINE
    return is_norm and operation.scale and operation.center and len(graph.calls(operation)) == 1


def _ceiling(node: Node) -> float | None:
    """The value up to which a call lets a factor through; `None` where it lets none through."""
    operation = node.operation
    if isinstance(operation, _CHANNEL_WISE):
        return np.inf
    if isinstance(operation, layers.ReLU) and operation.max_value is not None:
        is_plain = not operation.threshold and not operation.negative_slope
        return float(operation.max_value) if is_plain and operation.max_value > 0 else None
    name = activation_of(operation)
    if name == "relu6":
        return 6.0
    return np.inf if name in _HOMOGENEOUS else None


def _kernel(layer: keras.Layer) -> tuple[keras.Variable, tuple[int, ...], tuple[int, ...]]:
    """`(variable, axes of the output channels, axes of the input channels)`."""
    kernel = layer_kernels(layer)[0]
    rank = len(kernel.variable.shape)
    outputs = tuple(a % rank for a in kernel.spec.output_axes)
    inputs = tuple(a % rank for a in kernel.spec.input_axes) or outputs
    return kernel.variable, outputs, inputs


def _channels(layer: keras.Layer) -> int:
    variable, axes, _ = _kernel(layer)
    return int(np.prod([variable.shape[a] for a in axes]))


def _input_channels(layer: keras.Layer) -> int:
    variable, _, axes = _kernel(layer)
    return int(np.prod([variable.shape[a] for a in axes]))


def _ranges(kernel: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    others = tuple(a for a in range(kernel.ndim) if a not in axes)
    return np.abs(kernel).max(others).ravel()


def _scaled(kernel: np.ndarray, axes: tuple[int, ...], factor: np.ndarray) -> np.ndarray:
    shape = [n if a in axes else 1 for a, n in enumerate(kernel.shape)]
    return kernel * factor.reshape(shape)


def _equalize_pair(pair: _Pair) -> None:
    first, batch_norm, second = pair.first, pair.batch_norm, pair.second
    kernel, outputs, _ = _kernel(first)
    next_kernel, _, inputs = _kernel(second)
    ranges = _ranges(kernel.numpy(), outputs)
    if batch_norm is not None:
        gamma, variance = batch_norm.gamma.numpy(), batch_norm.moving_variance.numpy()
        ranges = ranges * np.abs(gamma) / np.sqrt(variance + batch_norm.epsilon)
    next_ranges = _ranges(next_kernel.numpy(), inputs)
    # A channel that is off on either side has nothing to even out.
    alive = (ranges > 1e-8) & (next_ranges > 1e-8)
    safe = np.where(alive, next_ranges, 1.0)
    factor = np.where(alive, np.sqrt(np.where(alive, ranges, 1.0) * safe) / safe, 1.0)
    factor = np.where(pair.fixed, 1.0, np.maximum(factor, pair.smallest))
    pair.smallest = pair.smallest / factor
    if batch_norm is not None:
        batch_norm.gamma.assign(gamma / factor)
        batch_norm.beta.assign(batch_norm.beta.numpy() / factor)
    else:
        kernel.assign(_scaled(kernel.numpy(), outputs, 1.0 / factor))
        if first.use_bias:
            first.bias.assign(first.bias.numpy() / factor)
    next_kernel.assign(_scaled(next_kernel.numpy(), inputs, factor))
