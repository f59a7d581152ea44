"""Codes and scales of the constants of an int8 operator: kernels, biases and operands.

A trained kernel comes with its codes. A constant that a form brings along (the ones of an identity
convolution, the 1/n of an average, the factors of a multiplication) gets them by one rule here:
symmetric, so that the largest value has the code 127; a kernel per output channel, an operand with
one scale. A number is 255 steps from its zero point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.quantization.operators.runtime_arithmetic import (
    OPERAND_STEP,
    addend_scale,
    factor_scale,
    is_number,
)

if TYPE_CHECKING:
    from tfcompress.export.lowering.bake import BakedKernel

_OPERATOR = schema.BuiltinOperator
_LARGEST_CODE = 127
# How fine a bias is, in output steps, where its channel's kernel is zero and gives it no scale.
_BIAS_STEP = 2.0**-10
# Float rounding between a kernel as it was trained and as the converter stores it, in its steps.
_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Codes:
    """A constant as the file holds it.

    Attributes:
        values: Integer codes, of the constant's shape.
        scale: (channels,) or (1,), float32.
        zero_point: Code of zero.
    """

    values: np.ndarray
    scale: np.ndarray
    zero_point: int = 0


def trained_kernel(kernel: BakedKernel, values: np.ndarray, axis: int, code: int) -> Codes:
    """Codes of a trained kernel in the layout of the operator.

    Args:
        kernel: The kernel.
        values: What the converter stores for it, float32.
        axis: Axis of the output channels.
        code: The builtin code of the operator.

    Raises:
        ValueError: The values are not those of the kernel.
    """
    layout = stored_layout(kernel, values.shape, code)
    scale = np.atleast_1d(np.asarray(kernel.scale, np.float32)).ravel()
    has_shape = squeezed(layout.shape) == squeezed(values.shape)
    if not has_shape or scale.size not in (1, values.shape[axis]):
        raise ValueError(
            f"Expected a kernel of shape {layout.shape}. Received: {values.shape} in the file."
        )
    codes = np.ascontiguousarray(layout, np.int8).reshape(values.shape)
    step = per_channel(scale, values.ndim, axis)
    if np.any(np.abs(codes * step - values) > _TOLERANCE * step + 1e-6 * np.abs(values)):
        raise ValueError("Expected the trained kernel. Received: other values in the file.")
    return Codes(codes, scale)


def constant_kernel(
    values: np.ndarray, axis: int, input_scale: float, output_scale: float
) -> Codes:
    """Codes of a constant kernel: the largest value of every output channel gets the code ±127."""
    axes = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axes).astype(np.float32)
    # By the reciprocal, as the layers that train with such a kernel compute it.
    scale = largest * np.float32(1 / _LARGEST_CODE)
    zero = np.float32(output_scale * _BIAS_STEP / input_scale)
    scale = np.where(scale > 0, scale, zero)
    codes = np.round(values / per_channel(scale, values.ndim, axis))
    return Codes(codes.astype(np.int8), scale)


def bias_codes(
    bias: np.ndarray, input_scale: float, kernel_scale: np.ndarray, dtype: str = "<i4"
) -> Codes:
    """int32 or int64 codes of a bias: its scale is that of the sum, input scale · kernel scale."""
    step = np.float64(np.float32(input_scale)) * kernel_scale.astype(np.float64)
    # More than int32 holds is 2⁴⁴ at most, exact in float64.
    end = 2.0**31 if dtype == "<i4" else 2.0**45
    codes = np.clip(np.round(bias.ravel() / step), -end, end - 1).astype(dtype)
    return Codes(codes.reshape(bias.shape), step.astype(np.float32))


def operand(values: np.ndarray, code: int, output_scale: float) -> Codes:
    """Codes of a constant that is added to, subtracted from or multiplied with a tensor."""
    largest = values.ravel()[np.abs(values).argmax()]
    zero_point = (127 if largest < 0 else -128) if is_number(values) else 0
    if code == _OPERATOR.MUL:
        scale = factor_scale(values)
    else:
        scale = np.float32(max(addend_scale(values), np.float32(output_scale * OPERAND_STEP)))
    codes = np.round(values / scale) + zero_point
    return Codes(codes.astype(np.int8), scale.reshape(1), zero_point)


def tflite_layout(codes: np.ndarray, keras_class: str) -> np.ndarray:
    """A kernel in the layout of the op that runs it, without axes of size 1 in between."""
    if keras_class.startswith("Depthwise"):
        return codes.reshape(*codes.shape[:-2], -1)
    if keras_class == "Conv3D":
        # (d, h, w, in, out) → (out, h, w, d · in): the slices along the depth are channels.
        layout = np.transpose(codes, (4, 1, 2, 0, 3))
        return layout.reshape(*layout.shape[:3], -1)
    if keras_class == "Conv3DTranspose":
        # (d, h, w, out, in) → (out, h, w, d · in), likewise.
        layout = np.transpose(codes, (3, 1, 2, 0, 4))
        return layout.reshape(*layout.shape[:3], -1)
    if keras_class.endswith("Transpose"):
        # (h, w, out, in) → (out, h, w, in)
        return np.moveaxis(codes, -2, 0)
    return np.moveaxis(codes, -1, 0)


def stored_layout(kernel: BakedKernel, shape: Sequence[int], code: int) -> np.ndarray:
    """The codes of a trained kernel in the layout of the op that runs it.

    Args:
        kernel: The kernel.
        shape: That of the op's kernel. A transposed convolution whose stride is larger than its
            kernel runs with a kernel that ends in zeros.
        code: The op's builtin code. A dilated transposed convolution runs as a CONV_2D with the
            reversed kernel.
    """
    layout = tflite_layout(kernel.codes, kernel.keras_class)
    if not kernel.keras_class.endswith("Transpose") or len(shape) != 4:
        return layout
    filters, *sizes, channels = layout.shape
    sizes = [1] * (2 - len(sizes)) + sizes
    layout = layout.reshape(filters, *sizes, channels)
    if code == _OPERATOR.CONV_2D:
        return layout[:, ::-1, ::-1]
    zeros = [(0, max(n - size, 0)) for n, size in zip(shape[1:3], sizes, strict=True)]
    return np.pad(layout, [(0, 0), *zeros, (0, 0)])


def pack(codes: np.ndarray, num_bits: int) -> np.ndarray:
    """Codes of 4 or 2 bits, two or four to a byte, the first in the lowest bits."""
    per_byte = 8 // num_bits
    flat = codes.astype(np.int8).ravel()
    flat = np.append(flat, np.zeros(-flat.size % per_byte, np.int8)).astype(np.uint8)
    parts = (flat & (2**num_bits - 1)).reshape(-1, per_byte) << np.arange(0, 8, num_bits)
    return parts.sum(1).astype(np.uint8)


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without its axes of size 1."""
    return tuple(int(n) for n in shape if n != 1)


def per_channel(scale: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A scale per channel in a shape that broadcasts against its tensor."""
    if scale.size == 1:
        return scale.reshape(())
    return scale.reshape([-1 if i == axis else 1 for i in range(rank)])
