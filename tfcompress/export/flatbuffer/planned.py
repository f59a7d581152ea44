"""The plan of a file: which tensors hold codes, and the number that marks each for the converter.

The converter gets a graph in which every planned tensor passes a fake-quant op. Without any
optimization it turns that into a QUANTIZE and a DEQUANTIZE, and neither fuses nor moves arithmetic
across the pair. The range of the n-th planned tensor is −128·n … 127·n, whatever its real range
is: in the converted file it has the scale n, an exact number that tells which tensor it is.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tfcompress.export.lowering.bake import BakedKernel

#: Zero point of a marked tensor in the converted file, whose codes are uint8.
MARK_ZERO_POINT = 128
# float32 holds 255·n exactly up to here.
_MOST_MARKS = 2**16


class Kind(enum.Enum):
    """How a planned tensor comes about.

    COMPUTED: an int8 operator gives it. ROUNDED: QUANTIZE gives it, from a float tensor or from
    codes of another scale. FLOAT: no codes: a call that stays in float reads a tensor of codes
    here, through DEQUANTIZE.
    """

    COMPUTED = "computed"
    ROUNDED = "rounded"
    FLOAT = "float"


@dataclasses.dataclass(frozen=True)
class Table:
    """A function of each value, as codes by codes.

    Attributes:
        codes: (256,) int8: the output's code for the input's codes −128 … 127.
        input_scale: Scale of the input's codes.
        input_zero_point: Their zero point.
        kernel: The function's name in `lookup.KERNELS`; empty where LiteRT has no kernel of it.
    """

    codes: np.ndarray
    input_scale: float
    input_zero_point: int
    kernel: str = ""


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the plan.

    Attributes:
        name: Name of its tensor in the file, unique in its signature.
        layer: The layer whose tensor it is, for messages; for an input its name.
        kind: How it comes about.
        scale: Scale of its codes.
        zero_point: Their zero point.
        kernel: The kernel of the operator that computes it; `None` for one without a kernel, and
            for one with a constant kernel.
        num_bits: Bits of a code in the file, 8 or 16.
        operand_grid: Scale and zero point of the operator's constant operand, where the plan gives
            it codes; `None` where the file may choose them.
        options: Names and values of the operator's options that the converter cannot write.
    """

    name: str
    layer: str
    kind: Kind
    scale: float = 0.0
    zero_point: int = 0
    kernel: BakedKernel | None = None
    options: tuple[tuple[str, Any], ...] = ()
    operand_grid: tuple[float, int] | None = None
    table: Table | None = None
    num_bits: int = 8


def mark_range(number: int) -> tuple[float, float]:
    """The range of the fake-quant that marks the `number`-th planned tensor, counted from 1."""
    if not 0 < number <= _MOST_MARKS:
        raise ValueError(f"Expected a number in 1..{_MOST_MARKS}. Received: {number}.")
    return -128.0 * number, 127.0 * number


def mark_number(scale: float, zero_point: int) -> int | None:
    """The number that a scale and a zero point of a converted file stand for, if they do."""
    number = round(scale)
    is_mark = zero_point == MARK_ZERO_POINT and number == scale and 0 < number <= _MOST_MARKS
    return number if is_mark else None
