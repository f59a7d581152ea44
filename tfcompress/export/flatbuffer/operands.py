"""The constant inputs of an int8 operator: its kernel and bias, or a constant operand."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.export.flatbuffer.constants import (
    Codes,
    bias_codes,
    constant_kernel,
    operand,
    pack,
    trained_kernel,
)
from tfcompress.export.flatbuffer.editing import (
    add_tensor,
    constant,
    grid_of,
    op_code,
    quantization,
    require_version,
)
from tfcompress.export.flatbuffer.int8_ops import PACKED_VERSIONS, WEIGHT_OPS
from tfcompress.export.flatbuffer.planned import PlannedTensor
from tfcompress.quantization.placement.stored import packed_bits

_OPERATOR, _TYPE = schema.BuiltinOperator, schema.TensorType


def write_kernel(
    model: schema.ModelT, graph: schema.SubGraphT, op: schema.OperatorT, tensor: PlannedTensor
) -> None:
    """Puts codes in place of the float kernel and bias of an operator whose input holds codes.

    Args:
        model: The file.
        graph: The subgraph.
        op: A convolution or FULLY_CONNECTED. Its tensors may have other readers, so it gets new
            ones.
        tensor: What it computes.

    Raises:
        ValueError: The file holds another kernel or bias than was trained.
    """
    code = op_code(model, op)
    given, weights, bias, axis = WEIGHT_OPS[code]
    input_scale, _ = grid_of(graph.tensors[op.inputs[given]])
    is_int16 = graph.tensors[op.inputs[given]].type == _TYPE.INT16
    stored = graph.tensors[op.inputs[weights]]
    codes = _kernel_codes(tensor, code, _values(model, stored), axis, input_scale)
    trained = None if tensor.kernel is None else tensor.kernel.bias
    if len(op.inputs) > bias and op.inputs[bias] >= 0:
        like = graph.tensors[op.inputs[bias]]
        values = _values(model, like)
        if tensor.kernel is not None:
            values = _trained_bias(trained, values, input_scale * codes.scale)
        found = bias_codes(values, input_scale, codes.scale, "<i8" if is_int16 else "<i4")
        op.inputs[bias] = _add(
            model, graph, like, _TYPE.INT64 if is_int16 else _TYPE.INT32, found, 0
        )
    elif trained is not None and np.any(trained):
        raise ValueError("Expected a bias, as it was trained. Received: none in the file.")
    if is_int16 and hasattr(op.builtinOptions, "quantizedBiasType"):
        op.builtinOptions.quantizedBiasType = _TYPE.INT64
    dtype = _stored_type(tensor, code, codes.values)
    if dtype != _TYPE.INT8:
        require_version(model, op, PACKED_VERSIONS[code, dtype])
        codes = Codes(pack(codes.values, 2 if dtype == _TYPE.INT2 else 4), codes.scale)
    op.inputs[weights] = _add(model, graph, stored, dtype, codes, axis)


def _stored_type(tensor: PlannedTensor, code: int, codes: np.ndarray) -> int:
    """The type that holds the codes of a kernel, which is stored in rows of one output each."""
    bits = 8 if tensor.kernel is None else tensor.kernel.num_bits
    if (code, _TYPE.INT4) not in PACKED_VERSIONS:
        return _TYPE.INT8
    return {2: _TYPE.INT2, 4: _TYPE.INT4, 8: _TYPE.INT8}[packed_bits(bits, codes.shape[-1])]


def add_operand(
    model: schema.ModelT, graph: schema.SubGraphT, index: int, code: int, output_scale: float
) -> int:
    """Adds the codes of a constant operand of a sum, difference or product.

    Args:
        model: The file.
        graph: The subgraph.
        index: The float constant.
        code: The builtin code of the operator.
        output_scale: Scale of what the operator gives.

    Returns:
        The index of the int8 constant.
    """
    like = graph.tensors[index]
    found = operand(_values(model, like), code, output_scale)
    return _add(model, graph, like, _TYPE.INT8, found, 0)


def add_codes(
    model: schema.ModelT, graph: schema.SubGraphT, index: int, grid: tuple[float, int]
) -> int:
    """Adds a float constant as codes of a given scale and zero point, saturated.

    Args:
        model: The file.
        graph: The subgraph.
        index: The float constant.
        grid: Scale and zero point.

    Returns:
        The index of the int8 constant.
    """
    like = graph.tensors[index]
    scale, zero_point = grid
    # Halves go up, as in the op that rounds such a tensor in training.
    codes = np.floor(_values(model, like) / np.float32(scale) + np.float32(0.5)) + zero_point
    values = np.clip(codes, -128, 127).astype(np.int8)
    found = Codes(values, np.asarray([scale], np.float32), zero_point)
    return _add(model, graph, like, _TYPE.INT8, found, 0)


def compared_codes(name: str, values: np.ndarray, grid: tuple[float, int]) -> np.ndarray:
    """What codes are compared with in place of numbers.

    Args:
        name: The operator, such as `"GREATER"`, whose first operand are the codes.
        values: The numbers that their values are compared with, float32.
        grid: Scale and zero point of the codes.

    Returns:
        int32, of the shape of the numbers: the comparison of the codes with them gives what that
        of their float32 values with the numbers gives. EQUAL and NOT_EQUAL are with the nearest
        code.
    """
    scale, zero_point = np.float32(grid[0]), grid[1]
    if name in ("EQUAL", "NOT_EQUAL"):
        return (np.rint(values / scale).astype(np.int64) + zero_point).astype("<i4")
    known = (np.arange(-128, 128) - zero_point).astype(np.float32) * scale
    # How many codes are below a number, those of the number itself among them or not.
    if name in ("GREATER", "LESS_EQUAL"):
        return (np.searchsorted(known, values, "right") - 129).astype("<i4")
    return (np.searchsorted(known, values, "left") - 128).astype("<i4")


def _kernel_codes(
    tensor: PlannedTensor, code: int, values: np.ndarray, axis: int, input_scale: float
) -> Codes:
    kernel = tensor.kernel
    if kernel is None:
        # The forms of operations without weights are convolutions, depthwise ones as a rule.
        if code in (_OPERATOR.FULLY_CONNECTED, _OPERATOR.TRANSPOSE_CONV):
            raise ValueError("Expected a trained kernel. Received: none in the plan.")
        return constant_kernel(values, axis, input_scale, tensor.scale)
    if np.float32(kernel.input_scale) != np.float32(input_scale):
        raise ValueError(
            f"Expected an input of scale {kernel.input_scale:g}, as it was trained. Received: "
            f"{input_scale:g}."
        )
    return trained_kernel(kernel, values, axis, code)


def _trained_bias(trained: np.ndarray | None, stored: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The bias as it was trained, in the shape of the stored one, which it is but for rounding."""
    wanted = np.zeros_like(stored) if trained is None else np.ravel(trained)
    if wanted.size != stored.size:
        raise ValueError(
            f"Expected {wanted.size} biases, as they were trained. Received: {stored.size}."
        )
    wanted = wanted.reshape(stored.shape)
    tolerance = step + 1e-5 * np.abs(wanted)
    if np.any(np.abs(wanted - stored) > tolerance):
        raise ValueError("Expected the bias as it was trained. Received: another in the file.")
    return wanted


def _values(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray:
    values = constant(model, tensor)
    if values is None:
        raise ValueError("Expected a constant kernel and bias. Received: computed ones.")
    return values


def _add(
    model: schema.ModelT,
    graph: schema.SubGraphT,
    like: schema.TensorT,
    dtype: int,
    codes: Codes,
    axis: int,
) -> int:
    grid = quantization(codes.scale, codes.zero_point, axis)
    return add_tensor(model, graph, like, dtype, quantization=grid, data=codes.values)
