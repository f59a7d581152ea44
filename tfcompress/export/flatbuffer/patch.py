"""Writes the trained codes and scales into the flatbuffer that the converter wrote.

The converter takes baked weights as float constants and derives their scales from the largest
value. Where a scale is fixed, clipped, a power of two or of fewer bits, that is another scale, and
other codes. Here every kernel is found in the file by shape and value, and its codes, its scales
and its bias are made exactly what was trained. The scales of activations go through the converter
as the ends of a range; here their last bits are corrected too, because in a deep network one value
that is rounded differently makes others differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.flatbuffer.buffers import set_data, share_buffers
from tfcompress.export.lowering.bake import BakedKernel

_OPERATOR = schema.BuiltinOperator
# Op → (position of the weights, of the bias, axis of the output channels).
_WEIGHT_OPS = {
    _OPERATOR.CONV_2D: (1, 2, 0),
    _OPERATOR.DEPTHWISE_CONV_2D: (1, 2, 3),
    _OPERATOR.FULLY_CONNECTED: (1, 2, 0),
    _OPERATOR.TRANSPOSE_CONV: (1, 3, 0),
}
#: Which 4-bit kernels are stored as INT4: XNNPACK runs those of FULLY_CONNECTED faster than int8,
#: while a 4-bit convolution falls off it.
INT4_OPS = (_OPERATOR.FULLY_CONNECTED,)
# Versions and runtime from which an op takes INT4 weights.
_INT4_VERSIONS = {_OPERATOR.FULLY_CONNECTED: 10}
_INT4_RUNTIME = b"2.11.0"


@dataclasses.dataclass(frozen=True)
class PatchResult:
    """What was done.

    Attributes:
        data: The file.
        patched: Layers whose kernel was rewritten (for more than a scale's last bits).
        missing: Layers whose kernel was not found in the file.
    """

    data: bytes
    patched: tuple[str, ...]
    missing: tuple[str, ...]


def patch(
    data: bytes,
    kernels: Mapping[str, Sequence[BakedKernel]],
    activation_scales: Iterable[float] = (),
) -> PatchResult:
    """Makes every kernel of a converted file hold exactly the codes and scales given.

    Args:
        data: The file as the converter wrote it.
        kernels: Key of a signature → what its subgraph must hold. Models that share layers have
            equal kernels, each with a bias and an input of its own.
        activation_scales: Scales of the model's activations: a scale in the file that is one of
            them but for rounding becomes it.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    patched, missing, taken = [], [], _Taken()
    for key, wanted in kernels.items():
        graphs = _graphs_of(model, key)
        for kernel in wanted:
            found = _find(model, graphs, kernel, taken)
            if found is None:
                missing.append(kernel.layer)
                continue
            graph, op, code = found
            # Ops of equal weights share a tensor: what one rewrites concerns the other's bias.
            is_rewritten = taken.is_rewritten(graph, op, code)
            changed = _write(model, graph, op, code, kernel, is_rewritten)
            taken.add(graph, op, code, kernel, changed)
            if changed:
                patched.append(kernel.layer)
    _set_activation_scales(model, np.unique(np.float32(list(activation_scales))))
    share_buffers(model)
    data = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    return PatchResult(data, tuple(patched), tuple(missing))


def tflite_layout(codes: np.ndarray, keras_class: str) -> np.ndarray:
    """A kernel in the layout of the op that runs it, without axes of size 1 in between."""
    if keras_class.startswith("Depthwise"):
        return codes.reshape(*codes.shape[:-2], -1)
    if keras_class.endswith("Transpose"):
        # (h, w, out, in) → (out, h, w, in)
        return np.moveaxis(codes, -2, 0)
    return np.moveaxis(codes, -1, 0)


class _Taken:
    """Which ops are matched so far, and the kernel of each tensor of weights."""

    def __init__(self):
        self._ops: set[int] = set()
        self._kernels: dict[tuple[int, int], tuple[BakedKernel, bool]] = {}

    def add(self, graph, op, code: int, kernel: BakedKernel, changed: bool) -> None:
        self._ops.add(id(op))
        self._kernels[_weight_key(graph, op, code)] = kernel, changed

    def has(self, op) -> bool:
        return id(op) in self._ops

    def kernel(self, graph, op, code: int) -> BakedKernel | None:
        return self._kernels.get(_weight_key(graph, op, code), (None, False))[0]

    def is_rewritten(self, graph, op, code: int) -> bool:
        return self._kernels.get(_weight_key(graph, op, code), (None, False))[1]


def _graphs_of(model, key: str) -> list:
    """The subgraph of a signature; all of a file that has no more than one."""
    signatures = model.signatureDefs or []
    if len(signatures) < 2:
        return model.subgraphs
    return [model.subgraphs[s.subgraphIndex] for s in signatures if s.signatureKey.decode() == key]


def _find(model, graphs: list, kernel: BakedKernel, taken: _Taken):
    """`(subgraph, op, op code)` whose weights are the kernel's, the nearest in value.

    Of ops with equal weights it is one that is not found yet, with the kernel's input and bias.
    """
    layout = tflite_layout(kernel.codes, kernel.keras_class)
    best = None
    for graph in graphs:
        for op in graph.operators:
            code = _code(model, op)
            if code not in _WEIGHT_OPS:
                continue
            position, _, axis = _WEIGHT_OPS[code]
            tensor = graph.tensors[op.inputs[position]]
            raw = model.buffers[tensor.buffer].data
            if raw is None or tensor.type != schema.TensorType.INT8:
                continue
            if squeezed(tensor.shape) != squeezed(layout.shape):
                continue
            other = taken.kernel(graph, op, code)
            if other is not None and not np.array_equal(other.codes, kernel.codes):
                continue
            wanted = layout.reshape(tensor.shape) * _spread(kernel.scale, tensor.shape, axis)
            scales = np.asarray(tensor.quantization.scale, np.float64)
            axis_of = tensor.quantization.quantizedDimension if scales.size > 1 else axis
            stored = np.frombuffer(bytes(raw), np.int8).reshape(tensor.shape)
            spread = _spread(scales, tensor.shape, axis_of)
            error = np.abs(stored * spread - wanted)
            if np.all(error <= 0.51 * spread + 1e-12):
                distance = (taken.has(op), float(error.sum()), *_unlike(model, graph, op, kernel))
                if best is None or distance < best[0]:
                    best = distance, (graph, op, code)
    return None if best is None else best[1]


def _unlike(model, graph, op, kernel: BakedKernel) -> tuple[float, float]:
    """Relative difference of an op's input scale, and largest difference of its bias."""
    position, bias_position, _ = _WEIGHT_OPS[_code(model, op)]
    # The input of a transposed convolution comes after its weights.
    given = graph.tensors[op.inputs[2 if position == 1 and bias_position == 3 else 0]]
    scale = None if given.quantization is None else given.quantization.scale
    has_scale = scale is not None and len(scale) == 1 and kernel.input_scale > 0
    away = abs(float(scale[0]) / kernel.input_scale - 1.0) if has_scale else 0.0
    has_bias = len(op.inputs) > bias_position and op.inputs[bias_position] >= 0
    if not has_bias or kernel.bias is None:
        return away, float("inf") if has_bias != (kernel.bias is not None) else 0.0
    bias = graph.tensors[op.inputs[bias_position]]
    raw = model.buffers[bias.buffer].data
    if raw is None or bias.quantization.scale is None:
        return away, float("inf")
    steps = np.asarray(bias.quantization.scale, np.float64)
    stored = np.frombuffer(bytes(raw), "<i4") * steps
    return away, float(np.abs(stored - kernel.bias.ravel()).max(initial=0.0))


def _write(model, graph, op, code: int, kernel: BakedKernel, is_rewritten: bool) -> bool:
    """Writes codes, scales and bias. Returns whether anything had to change."""
    position, bias_position, axis = _WEIGHT_OPS[code]
    tensor = graph.tensors[op.inputs[position]]
    codes = tflite_layout(kernel.codes, kernel.keras_class).reshape(tensor.shape)
    scale = np.broadcast_to(kernel.scale, (tensor.shape[axis],)).astype(np.float32)
    stored = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int8)
    is_int4 = kernel.num_bits == 4 and code in INT4_OPS
    have = np.asarray(tensor.quantization.scale, np.float32)
    same_scale = have.size in (1, scale.size) and np.allclose(have, scale, rtol=1e-5, atol=0)
    if not is_rewritten and not is_int4 and same_scale and np.array_equal(stored, codes.ravel()):
        if have.size == scale.size:
            tensor.quantization.scale = scale
        return False
    if is_int4:
        tensor.type = schema.TensorType.INT4
        set_data(model, tensor, pack_int4(codes))
        _require_int4(model, op, code)
    else:
        set_data(model, tensor, np.frombuffer(codes.tobytes(), np.uint8))
    _set_quantization(tensor, scale, axis)
    has_bias = len(op.inputs) > bias_position and op.inputs[bias_position] >= 0
    if has_bias and kernel.bias is not None:
        bias = graph.tensors[op.inputs[bias_position]]
        step = np.float64(kernel.input_scale) * scale.astype(np.float64)
        values = np.clip(np.round(kernel.bias.ravel() / step), -(2**31), 2**31 - 1)
        set_data(model, bias, np.frombuffer(values.astype("<i4").tobytes(), np.uint8))
        _set_quantization(bias, step.astype(np.float32), 0)
    return True


def _set_activation_scales(model, scales: np.ndarray) -> None:
    if not scales.size:
        return
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            given = None if tensor.quantization is None else tensor.quantization.scale
            is_constant = model.buffers[tensor.buffer].data is not None
            if is_constant or given is None or len(given) != 1:
                continue
            nearest = scales[np.abs(scales - given[0]).argmin()]
            if abs(nearest - given[0]) <= 4e-7 * nearest:
                tensor.quantization.scale = np.float32([nearest])


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Two codes to a byte, the first in the low half."""
    flat = codes.astype(np.int8).ravel()
    if flat.size % 2:
        flat = np.append(flat, np.int8(0))
    return ((flat[0::2] & 15) | ((flat[1::2] & 15) << 4)).astype(np.uint8)


def _require_int4(model, op, code: int) -> None:
    """Requires a runtime that knows INT4 weights: an older one would misread the file."""
    operator_code = model.operatorCodes[op.opcodeIndex]
    operator_code.version = max(operator_code.version, _INT4_VERSIONS[code])
    for entry in model.metadata or []:
        if entry.name == b"min_runtime_version":
            text = _INT4_RUNTIME.ljust(16, b"\0")
            model.buffers[entry.buffer].data = np.frombuffer(text, np.uint8)


def _set_quantization(tensor, scale: np.ndarray, axis: int) -> None:
    tensor.quantization.scale = scale
    tensor.quantization.zeroPoint = np.zeros(scale.size, np.int64)
    tensor.quantization.quantizedDimension = axis
    tensor.quantization.min = tensor.quantization.max = None


def _code(model, op) -> int:
    entry = model.operatorCodes[op.opcodeIndex]
    return max(entry.builtinCode, entry.deprecatedBuiltinCode)


def _weight_key(graph, op, code: int) -> tuple[int, int]:
    return id(graph), int(op.inputs[_WEIGHT_OPS[code][0]])


def squeezed(shape) -> tuple[int, ...]:
    return tuple(int(n) for n in shape if n != 1)


def _spread(scale: np.ndarray, shape, axis: int) -> np.ndarray:
    scale = np.asarray(scale, np.float64).ravel()
    if scale.size == 1:
        return scale
    broadcast = [1] * len(shape)
    broadcast[axis] = -1
    return scale.reshape(broadcast)
