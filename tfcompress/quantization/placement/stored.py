"""In which type the file holds the codes of a kernel."""

from __future__ import annotations

import math
from typing import Any

from keras import layers

from tfcompress.model.kernels import kernel_specs
from tfcompress.quantization.schemes import WeightScheme

#: Widths that LiteRT runs packed in FULLY_CONNECTED, the narrowest first.
_PACKED = (2, 4)


def packed_bits(num_bits: int, inputs: int) -> int:
    """Bits that a code takes in a dense kernel of the file: 2, 4 or 8.

    XNNPACK reads rows that begin with a byte, so packed rows must end with one: 2 bits take inputs
    in multiples of four, 4 bits even numbers of them.

    Args:
        num_bits: Bits of a code.
        inputs: Weights of each output.
    """
    return next((w for w in _PACKED if num_bits <= w and inputs * w % 8 == 0), 8)


def packs_pointwise(layer: Any, num_bits: int) -> bool:
    """Whether `pointwise_as_dense` packs the kernel of a convolution.

    That is one of 1×1 without strides and groups, of 4 bits or fewer, and an even number of input
    channels.
    """
    return (
        isinstance(layer, layers.Conv1D | layers.Conv2D)
        and num_bits <= max(_PACKED)
        and all(size == 1 for size in (*layer.kernel_size, *layer.strides, layer.groups))
        and layer.data_format == "channels_last"
        and packed_bits(num_bits, _inputs(layer)) < 8
    )


def stored_type(layer: Any, scheme: WeightScheme) -> str:
    """What a plan says of a kernel: its type in the file, and a narrower one by choice.

    Args:
        layer: A built layer with one kernel.
        scheme: That of its kernel.
    """
    bits = scheme.quantizer.num_bits(scheme)
    if isinstance(layer, layers.Dense | layers.EinsumDense):
        return f"int{packed_bits(bits, _inputs(layer))}"
    if packs_pointwise(layer, bits):
        return f"int8; int{packed_bits(bits, _inputs(layer))} with pointwise_as_dense"
    return "int8"


def _inputs(layer: Any) -> int:
    """How many weights each output of a layer's kernel has."""
    (spec, *_) = kernel_specs(layer)
    shape = layer.kernel.shape
    return math.prod(shape) // math.prod(shape[axis] for axis in spec.output_axes)
