"""What no calibration can mend: weights that are no numbers, scales that the runtime refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfcompress.model.compressed import is_compressed
from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.kernels import has_bias
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.operators.channel_affine import FoldedAffine
from tfcompress.quantization.operators.constant_operands import MultiplyArray
from tfcompress.quantization.operators.constants import AddConstant, MultiplyConstant
from tfcompress.quantization.operators.registry import Role, keras_class, role
from tfcompress.quantization.operators.runtime_arithmetic import addend_scale, factor_scale
from tfcompress.quantization.operators.trained_sum import AddWeight
from tfcompress.quantization.placement.upstream import upstream_quantizer

#: XNNPACK multiplies an int32 sum by (unit of the sum) / (output scale), which must be smaller. A
#: ratio of almost 0, as a tensor of zeros has, runs.
LARGEST_RATIO = 2.0**8
#: Smallest ratios of scales of a sum or difference (operand / output) and of a product (operand ·
#: operand / output) that XNNPACK takes. LiteRT itself computes smaller ones exactly, outside of it.
SMALLEST_RATIO = {"Add": 2.0**-10, "Subtract": 2.0**-10, "Multiply": 2.0**-16}
#: Weights above it overflow float32 as soon as they are multiplied.
_LARGEST_WEIGHT = 1e30


def check_weights(model: keras.Model) -> None:
    """Raises `ValueError` naming the layers whose weights are NaN, infinite or above 1e30."""
    found = []
    for operation in Graph.from_model(model).operations():
        for variable in getattr(operation, "weights", ()):
            if not keras.backend.is_float_dtype(variable.dtype):
                continue
            value = np.asarray(variable.numpy(), np.float32)
            if not np.all(np.abs(value) <= _LARGEST_WEIGHT):
                found.append(f"{variable.name} of {operation.name}")
    if found:
        raise ValueError(
            f"Expected weights that are finite numbers up to {_LARGEST_WEIGHT:g}. Received: "
            f"{_listed(found)}. The model diverged in training: take an earlier checkpoint, or "
            "train again with a smaller learning rate or gradient clipping."
        )


def extreme_sums(model: keras.Model) -> list[str]:
    """Says which layers of a quantized model have int32 sums that the runtime cannot take.

    A sum's unit is input scale × kernel scale. The runtime multiplies the sum by unit / output
    scale, which must lie below `LARGEST_RATIO`, and adds the bias in units, which must fit
    int32. Otherwise LiteRT refuses the file, or the sum overflows.

    Args:
        model: A quantized model; layers without known ranges are passed over.

    Returns:
        One line for each layer, its name first. Empty for a model that runs.
    """
    found = {}
    for node in Graph.from_model(model).nodes:
        for units, quantizer, bias in _sums(node):
            problem = _problem(units, quantizer, bias)
            if problem and node.name not in found:
                found[node.name] = f"{node.name}: {problem}"
    return list(found.values())


def extreme_operands(model: keras.Model) -> list[str]:
    """Says which sums, differences and products have operands far too large for their output.

    From a ratio of scales of `LARGEST_RATIO` on XNNPACK does not take them, and LiteRT's own
    operators saturate wrongly or abort the process.

    Args:
        model: A quantized model; layers without known ranges are passed over.
    """
    found = {}
    graph = Graph.from_model(model)
    for node, ratio, name in itertools.chain(_operand_ratios(graph), _constant_ratios(graph)):
        if ratio >= LARGEST_RATIO and node.name not in found:
            found[node.name] = (
                f"{node.name}: one step of {name} is {ratio:.3g} steps of its output, whose range "
                "is far too narrow (its values nearly all cancel or are cut off)"
            )
    return list(found.values())


def tiny_operands(model: keras.Model) -> list[str]:
    """Says which sums, differences and products XNNPACK leaves to LiteRT's slower operators.

    The file computes the same; an operand is so small beside the output that it changes nothing.
    """
    found = {}
    for node, ratio, name in _operand_ratios(Graph.from_model(model)):
        if 0 < ratio < SMALLEST_RATIO[keras_class(node.operation).__name__]:
            found[node.name] = (
                f"{node.name!r} does not run under XNNPACK but in LiteRT's slower operator: one "
                f"step of {name} is {ratio:.2g} steps of its output, to which it adds nothing. "
                "Residual branches start so where the γ of their batch norm is almost 0: train on, "
                "or leave the branch out of the model."
            )
    return list(found.values())


def tied_products(model: keras.Model) -> list[str]:
    """Names of products of two tensors that can lie exactly between two codes.

    They do where the ratio of scales is a power of two below 1. XNNPACK then rounds up on ARM and
    to even on x86.
    """
    found: dict[str, None] = {}
    for node, ratio, _ in _operand_ratios(Graph.from_model(model)):
        is_product = keras_class(node.operation).__name__ == "Multiply"
        if is_product and ratio < 1 and np.frexp(ratio)[0] == 0.5:
            found[node.name] = None
    return list(found)


def _operand_ratios(graph: Graph) -> Iterator[tuple[Node, float, str]]:
    """Yields `(call, ratio of scales, what the operand is)` of sums, differences and products."""
    for node in graph.nodes:
        kind = keras_class(node.operation).__name__
        if role(node.operation) is not Role.ARITHMETIC or kind not in SMALLEST_RATIO:
            continue
        output = _output_quantizer(graph, node)
        operands = [upstream_quantizer(value.spec) for value in node.inputs]
        known = [q for q in (output, *operands) if q is not None and float(q.scale.numpy()) > 0]
        if len(operands) < 2 or len(known) < len(operands) + 1:
            continue
        scale, *given = (float(quantizer.scale.numpy()) for quantizer in known)
        if kind == "Multiply":
            yield node, given[0] * given[1] / scale, "the product of its inputs"
            continue
        for value, one in zip(node.inputs, given, strict=True):
            yield node, one / scale, f"its input from {_origin(value)!r}"


def _constant_ratios(graph: Graph) -> Iterator[tuple[Node, float, str]]:
    """Yields the same of sums and products of a tensor and a constant."""
    for node in graph.nodes:
        constant = _constant(node.operation)
        if constant is None:
            continue
        is_sum, own = constant
        output, operand = _output_quantizer(graph, node), upstream_quantizer(node.inputs[0].spec)
        if output is None or operand is None or not float(output.scale.numpy()) > 0:
            continue
        scale, given = (float(quantizer.scale.numpy()) for quantizer in (output, operand))
        if is_sum:
            yield node, given / scale, f"its input from {_origin(node.inputs[0])!r}"
            yield node, own / scale, "its constant"
        else:
            yield node, given * own / scale, "the product of its input and its constant"


def _constant(operation: Any) -> tuple[bool, float] | None:
    """Whether a constant is added, and its scale; `None` for another operation."""
    if isinstance(operation, AddConstant):
        return True, float(addend_scale(operation.value))
    if isinstance(operation, AddWeight):
        return True, float(addend_scale(np.asarray(operation.rounded())))
    if isinstance(operation, MultiplyConstant):
        return False, float(factor_scale(operation.value))
    if isinstance(operation, MultiplyArray):
        return False, float(factor_scale(operation.on_grid()))
    return None


def _output_quantizer(graph: Graph, node: Node) -> TensorQuantizer | None:
    """The quantizer that rounds what a call gives, past a fused ReLU."""
    for reader in graph.consumers(node.output):
        if isinstance(reader.operation, TensorQuantizer):
            return reader.operation
        if role(reader.operation) is Role.RELU:
            return _output_quantizer(graph, reader)
    return None


def _origin(value: Value) -> str:
    """The layer that a value comes from, past quantizers."""
    while value.node is not None and isinstance(value.node.operation, TensorQuantizer):
        value = value.node.inputs[0]
    return value.name


def _sums(node: Node) -> Iterator[tuple[np.ndarray, TensorQuantizer, np.ndarray]]:
    """Yields `(unit per channel, quantizer of the sum, bias per channel)` of a call."""
    operation, call_index = node.operation, node.kwargs.get("call_index", 0)
    if isinstance(operation, FoldedAffine):
        quantizer = operation.sum_quantizers.get(call_index)
        fold = operation.fold(call_index)
        if quantizer is not None and fold.step is not None and float(quantizer.scale.numpy()) > 0:
            bias = np.asarray(fold.addend + fold.bias * fold.factor)
            yield _as_channels(np.asarray(fold.step), quantizer, bias)
    elif is_compressed(operation):
        yield from _kernel_sum(operation, call_index)


def _kernel_sum(
    layer: Any, call_index: int
) -> Iterator[tuple[np.ndarray, TensorQuantizer, np.ndarray]]:
    transform = layer.transformed.of_type(FakeQuantizeWeights).get("kernel")
    if transform is None or transform.folded_batch_norm(call_index) is not None:
        return
    quantizer = transform.sum_quantizer(call_index)
    _, rounded = layer.transformed(call_index=call_index, training=False)
    if quantizer is None or rounded is None or float(quantizer.scale.numpy()) <= 0:
        return
    bias = np.asarray(layer.bias) if has_bias(layer) else np.zeros(())
    yield _as_channels(np.asarray(rounded.bias_step), quantizer, bias)


def _as_channels(
    units: np.ndarray, quantizer: TensorQuantizer, bias: np.ndarray
) -> tuple[np.ndarray, TensorQuantizer, np.ndarray]:
    units, bias = np.broadcast_arrays(np.ravel(units), np.ravel(bias))
    # A unit of 0: the input has no known range, or batch norm switches the channel off.
    known = units > 0
    return units[known].astype(np.float64), quantizer, bias[known].astype(np.float64)


def _problem(units: np.ndarray, quantizer: TensorQuantizer, bias: np.ndarray) -> str | None:
    if not units.size:
        return None
    ratios = units / float(quantizer.scale.numpy())
    if ratios.max() >= LARGEST_RATIO:
        return (
            f"one unit of its sum is {ratios.max():.3g} steps of its output, whose range is far "
            "too narrow for its weights (its values nearly all cancel or are cut off; where the "
            "range or the step is trained, by LSQPlus, LSQ or PACT, a lower learning rate keeps it)"
        )
    if (np.abs(bias) / units).max() > quantizer.largest_bias:
        return (
            f"its bias is {(np.abs(bias) / units).max():.3g} units of its sum, which "
            f"{'int64' if quantizer.is_int16 else 'int32'} does not hold: its weights (or its "
            "input) are far too small beside its bias"
        )
    return None


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
