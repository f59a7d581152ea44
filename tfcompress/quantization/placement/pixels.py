"""Inputs of pixels with a Rescaling behind them, which needs no operator in the file."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from tfcompress.model.graph import Graph, Node, Value
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.rescaled_input import LARGEST_PIXEL
from tfcompress.quantization.fake_quant.uniform_activations import UniformActivations
from tfcompress.quantization.operators.constants import AddConstant, MultiplyConstant
from tfcompress.quantization.operators.integer_inputs import ToFloat
from tfcompress.quantization.placement.decisions import Decisions
from tfcompress.quantization.schemes import ActivationScheme

# What 255 becomes: 1 (x / 255, x / 256) or 2 (x / 127.5 − 1, x / 128 − 1), give or take.
_LENGTHS = (1.0, 2.0)
_TOLERANCE = 5e-3


@dataclasses.dataclass(frozen=True)
class RescaledPixels:
    """An input and the calls that rescale it, each by one number for all channels.

    Attributes:
        value: What is rescaled: an input of the graph, or that as floating point numbers.
        calls: The calls, in running order.
        factor: What they multiply by, all together.
        offset: What they add.
    """

    value: Value
    calls: tuple[Node, ...]
    factor: float
    offset: float

    @property
    def output(self) -> Value:
        """The rescaled tensor."""
        return self.calls[-1].output


def rescaled_pixels(decisions: Decisions) -> list[RescaledPixels]:
    """The inputs that are rescaled pixels, whose codes are those of the rescaled tensor.

    Only where the first scheme is that of ordinary int8 codes: fewer codes, or ones with a zero
    point of 0, are other codes than those of pixels.
    """
    found = (_of_input(decisions, value) for value in decisions.graph.flat_inputs)
    return [each for each in found if each is not None]


def why_not_folded(decisions: Decisions, node: Node) -> str:
    """Why a Rescaling or Normalization that reads an input is an operator; else empty."""
    is_rescaling = isinstance(node.operation, keras.layers.Rescaling | keras.layers.Normalization)
    if not is_rescaling or _floats(decisions.graph, node.inputs[0]) is None:
        return ""
    if _numbers(node) is None:
        return (
            "it has numbers of its own for each channel, and an input has one scale: it is a "
            "depthwise convolution over the whole picture"
        )
    return ""


def _of_input(decisions: Decisions, value: Value) -> RescaledPixels | None:
    graph = decisions.graph
    start = value
    if value.spec.dtype == "uint8":
        reader = graph.sole_consumer(value)
        if reader is None or not isinstance(reader.operation, ToFloat):
            return None
        start = reader.output
    if not start.is_float:
        return None
    calls: list[Node] = []
    factor, offset, last = 1.0, 0.0, start
    best: RescaledPixels | None = None
    while True:
        node = graph.sole_consumer(last)
        numbers = None if node is None or not _is_plain(decisions, node) else _numbers(node)
        if node is None or numbers is None:
            return best
        calls.append(node)
        factor, offset = factor * numbers[0], offset * numbers[0] + numbers[1]
        last = node.output
        is_read = bool(graph.consumers(last)) and not graph.is_output(last)
        if is_read and decisions.fused_next(node) is None and _are_pixels(factor, offset):
            best = RescaledPixels(start, tuple(calls), factor, offset)


def _floats(graph: Graph, value: Value) -> Value | None:
    """The input of the graph that a value is, as it is or as floating point numbers."""
    while value.node is not None and isinstance(value.node.operation, ToFloat | FakeQuantize):
        value = value.node.inputs[0]
    return value if value.node is None else None


def _is_plain(decisions: Decisions, node: Node) -> bool:
    """Whether a call runs in int8 by the scheme of ordinary codes, and is the only one."""
    scheme = decisions.schemes.get(node.operation)
    if scheme is None or not decisions.is_quantized(node):
        return False
    only_call = len(decisions.calls.get(node.operation, [])) == 1
    return only_call and _has_plain_codes(scheme.activations)


def _has_plain_codes(scheme: ActivationScheme) -> bool:
    is_affine = not (scheme.symmetric or scheme.power_of_two or scheme.narrow_range)
    is_uniform = type(scheme.quantizer) is UniformActivations and scheme.rounding == "nearest"
    return scheme.num_bits == 8 and is_affine and is_uniform


def _numbers(node: Node) -> tuple[float, float] | None:
    """`(factor, offset)` of a call that multiplies and adds one number each; `None` for others."""
    operation = node.operation
    if isinstance(operation, AddConstant):
        return 1.0, operation.value
    if isinstance(operation, MultiplyConstant):
        return operation.value, 0.0
    if isinstance(operation, keras.layers.Rescaling):
        factor, offset = np.ravel(operation.scale), np.ravel(operation.offset)
    elif isinstance(operation, keras.layers.Normalization) and not operation.invert:
        if operation.mean is None or operation.variance is None:
            return None
        deviation = np.maximum(np.sqrt(operation.variance), keras.backend.epsilon())
        factor, offset = (
            np.ravel(1.0 / deviation),
            np.ravel(-np.asarray(operation.mean) / deviation),
        )
    else:
        return None
    if factor.size != 1 or offset.size != 1:
        return None
    return float(factor[0]), float(offset[0])


def _are_pixels(factor: float, offset: float) -> bool:
    """Whether a rescaling is one of pixels 0 … 255, one of which becomes 0."""
    length = factor * LARGEST_PIXEL
    is_usual = any(abs(length - usual) <= _TOLERANCE * usual for usual in _LENGTHS)
    return is_usual and -0.5 <= -offset / factor <= LARGEST_PIXEL + 0.5
