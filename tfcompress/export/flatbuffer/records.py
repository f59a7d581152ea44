"""Frozen records of what a `.tflite` holds: a tensor, an op, a signature."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class TensorSummary:
    """One tensor of one subgraph.

    Attributes:
        name: The converter's name for it.
        subgraph: Index of its subgraph.
        index: Its index there, which ops refer to.
        dtype: Lower-case type as stored: `"int8"`, `"int4"`, `"float32"`, …
        shape: Its shape; -1 where the file leaves a dimension open.
        buffer: Index of the buffer with its values; 0 where it has none.
        num_bytes: Bytes of its values in the file; 0 where it is not constant.
        scales: Its quantization scales: none, one, or one per channel.
        zero_points: As many zero points.
        quantized_axis: The channel axis where there are several scales, else `None`.
        is_constant: Whether the file holds its values.
        is_used: Whether any op reads or writes it.
        size: Number of values, or `None` with open dimensions.
        non_zeros: How many values are not zero (not at the zero point); `None` if not constant.
        num_distinct: How many different stored values (codes) there are; `None` if not constant.
    """

    name: str
    subgraph: int
    index: int
    dtype: str
    shape: tuple[int, ...]
    buffer: int
    num_bytes: int
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    quantized_axis: int | None
    is_constant: bool
    is_used: bool
    size: int | None
    non_zeros: int | None
    num_distinct: int | None

    @property
    def sparsity(self) -> float | None:
        """Fraction of exact zeros in 0..1; `None` if the tensor is not constant."""
        if self.non_zeros is None or not self.size:
            return None
        return 1.0 - self.non_zeros / self.size


@dataclasses.dataclass(frozen=True)
class OpSummary:
    """One op of one subgraph.

    Attributes:
        name: Builtin name (`"CONV_2D"`), `"Flex…"` for a TensorFlow op, `"CUSTOM:<code>"` else.
        subgraph: Index of its subgraph.
        inputs: Tensor indices; -1 for an input that is left out.
        outputs: Tensor indices.
        layer: What it comes from, as far as the converter's names tell.
        constant_bytes: Bytes of its constant inputs; a buffer that several ops read is counted
            at the first of them, so the sum over ops counts every byte once.
    """

    name: str
    subgraph: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layer: str
    constant_bytes: int


@dataclasses.dataclass(frozen=True)
class SignatureSummary:
    """One signature: its key, its subgraph, and its tensors by the signature's own names."""

    key: str
    subgraph: int
    inputs: Mapping[str, TensorSummary]
    outputs: Mapping[str, TensorSummary]
