"""In which type the file holds the codes of a kernel."""

from __future__ import annotations

import math
from typing import Any

from keras import layers

from tfcompress.model.kernels import kernel_specs
from tfcompress.quantization.schemes import WeightScheme

#: Widths that LiteRT runs packed in FULLY_CONNECTED, the narrowest first.
_PACKED = (2, 4)
#: Tensors that XNNPACK joins in one operator, at most.
MOST_JOINED = 5
#: Bytes that an operator and its tensors take in a file, about.
OPERATOR_BYTES = 180
# How many times the bytes of its operators a packed convolution saves at least: they take time.
_LEAST_GAIN = 4 / 3


def packed_bits(num_bits: int, inputs: int) -> int:
    """Bits that a code takes in a dense kernel of the file: 2, 4 or 8.

    XNNPACK reads rows that begin with a byte, so packed rows must end with one: 2 bits take inputs
    in multiples of four, 4 bits even numbers of them.

    Args:
        num_bits: Bits of a code.
        inputs: Weights of each output.
    """
    return next((w for w in _PACKED if num_bits <= w and inputs * w % 8 == 0), 8)


def is_pointwise(layer: Any) -> bool:
    """Whether a layer is a convolution of 1×1 without strides and groups."""
    return isinstance(layer, layers.Conv1D | layers.Conv2D) and all(
        size == 1 for size in (*layer.kernel_size, *layer.strides, layer.groups)
    )


def can_be_packed(layer: Any, num_bits: int, calls: int = 1) -> bool:
    """Whether a convolution is worth being a dense layer of packed codes in the file.

    Such a layer reads patches, which operators of their own put together: where the kernel does not
    save a third more than these take, it stays in int8.

    Args:
        layer: A built layer with one kernel.
        num_bits: Bits of a code.
        calls: How often the file calls the layer: each call has operators of its own.
    """
    if not isinstance(layer, layers.Conv1D | layers.Conv2D):
        return False
    if layer.groups != 1 or layer.data_format != "channels_last":
        return False
    saved = math.prod(layer.kernel.shape) * (8 - packed_bits(num_bits, _inputs(layer))) / 8
    return saved > _LEAST_GAIN * OPERATOR_BYTES * operators_of_patches(layer) * calls


def stored_type(layer: Any, scheme: WeightScheme, calls: int = 1) -> str:
    """What a plan says of a kernel: its type in the file, and a narrower one by choice.

    Args:
        layer: A built layer with one kernel.
        scheme: That of its kernel.
        calls: How often the model calls it.
    """
    bits = scheme.quantizer.num_bits(scheme)
    packed = f"int{packed_bits(bits, _inputs(layer))}"
    if isinstance(layer, layers.Dense | layers.EinsumDense):
        return packed
    if not can_be_packed(layer, bits, calls):
        return "int8"
    if scheme.packed:
        return packed
    choice = "pointwise_as_dense" if is_pointwise(layer) else "packed=True"
    return f"int8; {packed} with {choice}"


def operators_of_patches(layer: Any) -> int:
    """How many operators put the patches of a packed convolution together."""
    count = 0
    for size, stride in zip(layer.kernel_size, layer.strides, strict=True):
        slices = size if size > 1 or stride > 1 else 0
        reshapes = 1 + size if stride > 1 else 0
        joins, parts = 0, size
        while parts > 1:
            parts = -(-parts // MOST_JOINED)
            joins += parts
        count += slices + reshapes + joins
    is_padded = layer.padding != "valid" and max(layer.kernel_size) > 1
    return count + is_padded


def _inputs(layer: Any) -> int:
    """How many weights each output of a layer's kernel has."""
    (spec, *_) = kernel_specs(layer)
    shape = layer.kernel.shape
    return math.prod(shape) // math.prod(shape[axis] for axis in spec.output_axes)
