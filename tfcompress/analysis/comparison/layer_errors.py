"""Float against quantized tensors, one quantizer at a time, in little memory."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model import inference
from tfcompress.model.compressed import is_compressed
from tfcompress.model.graph import Graph, Node
from tfcompress.quantization.calibration.in_float import in_float, observed_by
from tfcompress.quantization.calibration.ranges import calibration_batches
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.rescaled_input import RescaledInput
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights

# Values of a tensor that are kept to try other ranges on.
_KEPT = 100_000
# Numbers that a batch holds at a time while the model runs twice.
_HELD_VALUES = 8 * 2**20


@dataclasses.dataclass(frozen=True)
class LayerError:
    """What rounding does to one tensor, and to the kernel whose results it holds.

    Attributes:
        name: The layer.
        quantizer: Name of the tensor's quantizer in the model.
        kernel: The layer with a kernel that is fused with it; empty for none.
        snr_db: 10 · log₁₀(Σ y² / Σ (y − ŷ)²) between the tensor of the model in float and that of
            the quantized model, in dB: what all roundings up to here have done.
        own_snr_db: Likewise, of rounding the float tensor here alone.
        weight_snr_db: Likewise, of that kernel; `None` for none.
        saturated: Share of the float values outside the range. No gradient passes there either.
        codes: How many of its codes the tensor uses.
        num_codes: How many there are.
        low: Smallest value that a code has.
        high: Largest one.
        smallest: Smallest float value.
        largest: Largest one.
        dead_channels: Channels that have one code on all samples.
        channels: How many channels there are.
    """

    name: str
    quantizer: str
    kernel: str
    snr_db: float
    own_snr_db: float
    weight_snr_db: float | None
    saturated: float
    codes: int
    num_codes: int
    low: float
    high: float
    smallest: float
    largest: float
    dead_channels: int
    channels: int


@dataclasses.dataclass
class _Sums:
    """What is added up over batches of one tensor."""

    signal: float = 0.0
    noise: float = 0.0
    own_noise: float = 0.0
    outside: int = 0
    count: int = 0
    smallest: float = math.inf
    largest: float = -math.inf
    codes: set[int] = dataclasses.field(default_factory=set)
    channel_low: np.ndarray | None = None
    channel_high: np.ndarray | None = None
    kept: list[np.ndarray] = dataclasses.field(default_factory=list)


def quantizers_of(model: keras.Model) -> list[FakeQuantize]:
    """The quantizers of activations whose range is known, in running order."""
    found = [o for o in Graph.from_model(model).operations() if isinstance(o, FakeQuantize)]
    return [q for q in found if float(q.scale.numpy()) > 0]


def batches_of(model: keras.Model, x: Any) -> list[Any]:
    """Samples as batches that the model can be run on twice in bounded memory.

    Raises:
        ValueError: Samples that do not fit the model.
    """
    most = max(1, _HELD_VALUES // inference.most_values(Graph.from_model(model)))
    return [
        part for batch in calibration_batches(model, x) for part in inference.split(batch, most)
    ]


def measure(
    model: keras.Model, batches: Sequence[Any]
) -> tuple[list[LayerError], float, dict[str, np.ndarray]]:
    """Runs the model in float and quantized, call by call.

    Args:
        model: A quantized model.
        batches: Batches in the structure of its inputs.

    Returns:
        An entry for each quantizer, in running order; the SNR of the outputs in dB; and name of
        the quantizer → some float values of its tensor.
    """
    graph = Graph.from_model(model)
    sums = {q: _Sums() for q in quantizers_of(model)}

    def call(node: Node, calls: list[tuple[tuple, dict]]) -> list[Any]:
        exact, rounded = calls
        with in_float(model):
            before = inference.call_in_inference(node, *exact)
        after = inference.call_in_inference(node, *rounded)
        quantizer = node.operation
        if isinstance(quantizer, FakeQuantize) and quantizer in sums:
            # That of an input that is rescaled gives other values than it takes.
            given = exact[0][0] if isinstance(quantizer, RescaledInput) else before
            alone = quantizer(given, training=False)
            _add(sums[quantizer], quantizer, before, after, alone)
        return [before, after]

    signal = noise = 0.0
    for batch in batches:
        exact, rounded = inference.run_together(graph, [batch, batch], call)
        for a, b in zip(exact, rounded, strict=True):
            x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
            signal, noise = signal + float(np.sum(x**2)), noise + float(np.sum((x - y) ** 2))
    weights, layers = weight_snr(model), kernel_layers(model)
    names = {q: layer.name for q, layer in layers.items()}
    errors = [_entry(q, s, names.get(q, ""), weights) for q, s in sums.items() if s.count]
    # Where an input is rescaled, its values are not in the unit of its range.
    kept = {
        q.name: np.concatenate(s.kept)
        for q, s in sums.items()
        if s.kept and not isinstance(q, RescaledInput)
    }
    return errors, decibels(signal, noise), kept


def output_snr(
    model: keras.Model, batches: Sequence[Any], floats: Sequence[Sequence[np.ndarray]]
) -> float:
    """SNR of the outputs in dB.

    Args:
        model: A quantized model.
        batches: Batches in the structure of its inputs.
        floats: Flat outputs of the model in float, for each batch.
    """
    graph = Graph.from_model(model)
    signal = noise = 0.0
    for batch, exact in zip(batches, floats, strict=True):
        for a, b in zip(exact, inference.run(graph, batch), strict=True):
            x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
            signal, noise = signal + float(np.sum(x**2)), noise + float(np.sum((x - y) ** 2))
    return decibels(signal, noise)


def float_outputs(model: keras.Model, batches: Sequence[Any]) -> list[list[np.ndarray]]:
    """Flat outputs of the model without rounding, for each batch."""
    graph = Graph.from_model(model)
    with in_float(model):
        return [[np.asarray(y) for y in inference.run(graph, batch)] for batch in batches]


def kernel_layers(model: keras.Model) -> dict[FakeQuantize, Any]:
    """Quantizer → the layer with a kernel whose results it rounds, through batch norm and ReLU."""
    found = {}
    for node in Graph.from_model(model).nodes:
        if not isinstance(node.operation, FakeQuantize):
            continue
        maker = node.inputs[0].node
        while maker is not None and len(maker.inputs) == 1 and not _is_end(maker.operation):
            maker = maker.inputs[0].node
        if maker is not None and is_compressed(maker.operation):
            found[node.operation] = maker.operation
    return found


def _is_end(operation: Any) -> bool:
    return isinstance(operation, FakeQuantize) or is_compressed(operation)


@contextlib.contextmanager
def layer_in_float(model: keras.Model, quantizer: FakeQuantize) -> Iterator[None]:
    """One tensor is not rounded, nor is the kernel whose results it holds."""
    layer = kernel_layers(model).get(quantizer)
    chains = [] if layer is None else [layer.transformed]
    try:
        for chain in chains:
            chain.rounds = False
        with observed_by({quantizer: _pass_on}):
            yield
    finally:
        for chain in chains:
            chain.rounds = True


def few_bits(model: keras.Model, quantizer: FakeQuantize) -> list[str]:
    """Layers that a configuration would give 8 bits instead of fewer: for the kernel, the tensor.

    Args:
        model: A quantized model.
        quantizer: That of the tensor.
    """
    layer = kernel_layers(model).get(quantizer)
    found: list[str] = []
    if layer is not None and any(kernel.num_bits < 8 for kernel in _kernels_of(layer)):
        found.append(layer.name)
    if quantizer.has_few_codes and quantizer.fixed_range is None:
        found.append(quantizer.source or quantizer.name)
    return list(dict.fromkeys(found))


def _kernels_of(layer: Any) -> list[FakeQuantizeWeights]:
    return list(layer.transformed.of_type(FakeQuantizeWeights).values())


@contextlib.contextmanager
def layer_in_int8(
    model: keras.Model, quantizer: FakeQuantize, low: float, high: float
) -> Iterator[None]:
    """One tensor, and the kernel whose results it holds, in 8 bits where they have fewer.

    Args:
        model: A quantized model.
        quantizer: That of the tensor.
        low: Smallest value of the tensor.
        high: Largest one.
    """
    before, layer = quantizer.scheme, kernel_layers(model).get(quantizer)
    with contextlib.ExitStack() as stack:
        for kernel in [] if layer is None else _kernels_of(layer):
            if kernel.num_bits < 8:
                stack.enter_context(kernel.in_int8())
        if quantizer.has_few_codes and quantizer.fixed_range is None:
            stack.callback(setattr, quantizer, "scheme", before)
            quantizer.scheme = dataclasses.replace(before, num_bits=8)
            stack.enter_context(with_range(quantizer, low, high))
        yield


@contextlib.contextmanager
def with_range(quantizer: FakeQuantize, low: float, high: float) -> Iterator[None]:
    """A quantizer with another range for a while."""
    # With those that hold a trained range while it is frozen.
    variables = quantizer.variables
    before = [variable.numpy() for variable in variables]
    try:
        quantizer.set_range(low, high)
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def weight_snr(model: keras.Model) -> dict[str, float]:
    """Layer → SNR of its quantized kernels in dB."""
    found = {}
    for layer in model.layers:
        if not is_compressed(layer) or not layer.transformed.of_type(FakeQuantizeWeights):
            continue
        effective = layer.effective_weights()
        try:
            layer.transformed.rounds = False
            exact = layer.effective_weights()
        finally:
            layer.transformed.rounds = True
        pairs = [(np.asarray(exact[n], np.float64), np.asarray(effective[n])) for n in effective]
        signal = sum(float(np.sum(a**2)) for a, _ in pairs)
        found[layer.name] = decibels(signal, sum(float(np.sum((a - b) ** 2)) for a, b in pairs))
    return found


def decibels(signal: float, noise: float) -> float:
    """10 · log₁₀(signal / noise); infinite without noise."""
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


def _pass_on(values: tf.Tensor) -> None:
    pass


def _add(
    sums: _Sums, quantizer: FakeQuantize, before: tf.Tensor, after: tf.Tensor, alone: tf.Tensor
) -> None:
    exact, rounded, own = (np.asarray(t, np.float64) for t in (before, after, alone))
    low, high = _range(quantizer)
    scale = float(quantizer.scale.numpy())
    sums.signal += float(np.sum(exact**2))
    sums.noise += float(np.sum((exact - rounded) ** 2))
    sums.own_noise += float(np.sum((exact - own) ** 2))
    # So far beyond the ends, values are rounded to them without more error than elsewhere.
    half = 0.501 * scale
    sums.outside += int(np.sum((exact < low - half) | (exact > high + half)))
    sums.count += exact.size
    sums.smallest = min(sums.smallest, float(exact.min(initial=math.inf)))
    sums.largest = max(sums.largest, float(exact.max(initial=-math.inf)))
    codes = np.rint(own / scale).astype(np.int64)
    sums.codes.update(np.unique(codes).tolist())
    rows = codes.reshape(-1, codes.shape[-1]) if codes.ndim > 1 else codes.reshape(-1, 1)
    lowest, highest = rows.min(0), rows.max(0)
    if sums.channel_low is None or sums.channel_high is None:
        sums.channel_low, sums.channel_high = lowest, highest
    elif sums.channel_low.shape == lowest.shape:
        sums.channel_low = np.minimum(sums.channel_low, lowest)
        sums.channel_high = np.maximum(sums.channel_high, highest)
    if sum(a.size for a in sums.kept) < _KEPT:
        sums.kept.append(exact.ravel()[:: max(1, exact.size // _KEPT)].astype(np.float32))


def _range(quantizer: FakeQuantize) -> tuple[float, float]:
    """Of the values that it gives, which are rescaled ones at some inputs."""
    low, high = quantizer.range
    if isinstance(quantizer, RescaledInput):
        factor, shift = quantizer.factor, float(quantizer.shift.numpy())
        return low * factor + shift, high * factor + shift
    return low, high


def _entry(
    quantizer: FakeQuantize, sums: _Sums, kernel: str, weights: Mapping[str, float]
) -> LayerError:
    low, high = _range(quantizer)
    name = quantizer.source or quantizer.name
    dead = channels = 0
    if sums.channel_low is not None and sums.channel_high is not None:
        channels = sums.channel_low.size
        dead = int(np.sum(sums.channel_low == sums.channel_high)) if channels > 1 else 0
    return LayerError(
        name,
        quantizer.name,
        kernel,
        decibels(sums.signal, sums.noise),
        decibels(sums.signal, sums.own_noise),
        weights.get(kernel),
        sums.outside / sums.count,
        len(sums.codes),
        2**quantizer.scheme.num_bits - quantizer.scheme.narrow_range,
        low,
        high,
        sums.smallest,
        sums.largest,
        dead,
        channels,
    )
