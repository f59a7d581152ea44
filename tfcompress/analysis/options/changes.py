"""What an option does to the weights of a float model, so that it can be tried and undone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.analysis.options.options import PRESETS, Option
from tfcompress.analysis.options.widths import Widths, reading_variables
from tfcompress.factorization.decompositions import Spectrum
from tfcompress.model.graph import Graph, Node
from tfcompress.model.kernels import Kernel, iterate_layers, layer_kernels
from tfcompress.model.paths import graph_paths
from tfcompress.quantization.fake_quant.affine import affine_parameters, fake_quantize
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid
from tfcompress.quantization.quantize import plan
from tfcompress.quantization.schemes import Scheme, WeightScheme, resolve


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An option of a layer, or of channels that go together.

    Attributes:
        target: Path of the layer, or name of the group of channels.
        option: What is done.
        nodes: The calls that it changes.
        position: Number of the first of them in the graph.
        parameters: Weights that it is about.
    """

    target: str
    option: Option
    nodes: tuple[Node, ...]
    position: int
    parameters: int


class Changes:
    """The options of a model that can ship, and what they do to its weights.

    Args:
        model: A functional float model.
        options: The options to consider.

    Attributes:
        graph: The graph of the model.
        candidates: All that can be done, in the order of the graph.
        skipped: Target → why an option is left out.
    """

    def __init__(self, model: keras.Model, options: Sequence[Option]):
        self.model = model
        self.graph = Graph.from_model(model)
        self._by_path = {path: op for op, path in graph_paths(self.graph).items()}
        self._position = {node: i for i, node in enumerate(self.graph.nodes)}
        self.skipped: dict[str, str] = {}
        self._ships = {o: self._shippable(o) for o in options if o.kind == "bits"}
        kinds = {option.kind for option in options}
        self.widths = Widths(model) if "channels" in kinds else None
        found: dict[tuple[str, Option], tuple[int, Candidate]] = {}
        for i, option in enumerate(options):
            for candidate in self._candidates(option):
                found.setdefault((candidate.target, candidate.option), (i, candidate))
        ordered = sorted(found.values(), key=lambda f: (f[1].position, f[1].target, f[0]))
        self.candidates = tuple(candidate for _, candidate in ordered)

    def values(self, candidate: Candidate) -> dict[int, tuple[keras.Variable, np.ndarray]]:
        """`id(variable)` → the variable and what it becomes."""
        option = candidate.option
        if option.kind == "channels":
            assert self.widths is not None
            group = self.widths.groups[self.widths.names.index(candidate.target)]
            units = self.widths.removed({candidate.target: option.value})
            changed = reading_variables(group, units)
            return {key: (variable, value) for key, (variable, value, _) in changed.items()}
        kernels = _kernels(self._by_path[candidate.target])
        return {id(k.variable): (k.variable, _changed(k, option)) for k in kernels}

    @contextlib.contextmanager
    def applied(self, candidate: Candidate) -> Iterator[None]:
        """The model with the option, inside the `with`."""
        changed = self.values(candidate)
        before = {key: np.array(variable) for key, (variable, _) in changed.items()}
        try:
            for variable, value in changed.values():
                variable.assign(value)
            yield
        finally:
            for key, (variable, _) in changed.items():
                variable.assign(before[key])

    def _shippable(self, option: Option) -> set[str]:
        """Paths of the layers whose weights a file can hold at these bits."""
        entries = plan(self.model, PRESETS[int(option.value)])
        for entry in entries:
            if entry.limits or (entry.float_reason and entry.name in self._by_path):
                reason = "; ".join(entry.limits) or entry.float_reason
                self.skipped.setdefault(entry.name, reason)
        return {e.name for e in entries if e.weights and not e.limits and not e.is_float}

    def _candidates(self, option: Option) -> Iterator[Candidate]:
        if option.kind == "channels":
            yield from self._of_channels(option)
            return
        for path, layer in self._by_path.items():
            kernels = _kernels(layer)
            if not kernels or (option.kind == "bits" and path not in self._ships[option]):
                continue
            if option.kind == "rank" and not _has_low_rank(layer, kernels, option):
                continue
            nodes = tuple(self.graph.calls(layer))
            size = sum(int(np.prod(k.variable.shape)) for k in kernels)
            yield Candidate(path, option, nodes, self._position[nodes[0]], size)

    def _of_channels(self, option: Option) -> Iterator[Candidate]:
        assert self.widths is not None
        for name, group in zip(self.widths.names, self.widths.groups, strict=True):
            share = self.widths.share(name, option.value)
            if share == 1:
                continue
            # Named by what stays: several shares may be one number of channels.
            kept = dataclasses.replace(option, value=share)
            readers = reading_variables(group, self.widths.removed({name: share}))
            layers = {id(layer): layer for _, _, layer in readers.values()}
            nodes = [n for n in self.graph.nodes if id(n.operation) in layers]
            if nodes:
                size = sum(int(np.prod(p.member.variable.shape)) for p in group.makers)
                yield Candidate(name, kept, tuple(nodes), self._position[nodes[0]], size)


def round_activation(x: tf.Tensor) -> tf.Tensor:
    """A tensor on the int8 grid of its own range, in its own type."""
    # Grids are float32; under mixed precision a layer gives bfloat16 or float16.
    wide = tf.cast(x, tf.float32)
    scale, zero_point = affine_parameters(tf.reduce_min(wide), tf.reduce_max(wide))
    return tf.cast(fake_quantize(wide, scale, zero_point), x.dtype)


def round_kernel(kernel: Kernel, scheme: WeightScheme) -> np.ndarray:
    """A kernel on the grid of a scheme, as `quantize` puts it there."""
    value = kernel.variable.numpy()
    rank = value.ndim
    axes = tuple(axis % rank for axis in kernel.spec.output_axes)
    grid = KernelGrid(scheme, value.shape, axes, scheme.per_channel)
    fitted = scheme.quantizer.fit(value, grid)
    state: dict[str, Any] = {}
    for name, spec in scheme.quantizer.variables(grid).items():
        state[name] = keras.Variable(np.full(spec.shape, spec.initial, np.float32))
        if name in fitted:
            state[name].assign(fitted[name])
    return np.asarray(scheme.quantizer.quantize(tf.constant(value), state, grid, False)[0])


def prune_kernel(value: np.ndarray, sparsity: float) -> np.ndarray:
    """A kernel without its weights of least size."""
    count = round(sparsity * value.size)
    pruned = np.array(value)
    pruned.reshape(-1)[np.argsort(np.abs(value), axis=None, kind="stable")[:count]] = 0
    return pruned


def low_rank(share: float, shape: Sequence[int]) -> int:
    """The rank whose two factors take a share of the products of a kernel (…, outputs)."""
    rows, columns = int(np.prod(shape[:-1])), int(shape[-1])
    return int(share * rows * columns / (rows + columns))


def _kernels(layer: Any) -> list[Kernel]:
    """The kernels of an operation and of the layers inside it."""
    if not isinstance(layer, keras.Layer):
        return []
    return [k for inner in iterate_layers(layer) for k in layer_kernels(inner)]


def _changed(kernel: Kernel, option: Option) -> np.ndarray:
    value = kernel.variable.numpy()
    if option.kind == "bits":
        scheme = resolve(PRESETS[int(option.value)])
        assert isinstance(scheme, Scheme)
        return round_kernel(kernel, scheme.weights)
    if option.kind == "sparsity":
        return prune_kernel(value, option.value)
    matrix = value.reshape(-1, value.shape[-1])
    first, second = Spectrum.of(matrix).cut(low_rank(option.value, value.shape))
    return (first @ second).reshape(value.shape).astype(value.dtype)


def _has_low_rank(layer: keras.Layer, kernels: list[Kernel], option: Option) -> bool:
    """Whether `factorize` has a form of it: two layers instead of a dense one or a convolution."""
    plain = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)
    if len(kernels) != 1 or not isinstance(layer, plain) or getattr(layer, "groups", 1) != 1:
        return False
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    return not isinstance(layer, depthwise) and low_rank(option.value, layer.kernel.shape) >= 1
