"""The records of a file as tables for a terminal."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence

from tfcompress.export.flatbuffer.records import SignatureSummary, TensorSummary


def render_tables(
    heading: str,
    signatures: Sequence[SignatureSummary],
    op_counts: Mapping[str, int],
    layer_bytes: Mapping[str, int],
    num_bytes: int,
    tensors: Sequence[TensorSummary],
    width: int,
) -> str:
    """Returns a heading and tables of signatures, ops, layers and tensors as plain text.

    Args:
        heading: The first line.
        signatures: Rows of the first table.
        op_counts: Op name → how many.
        layer_bytes: Layer → bytes of its constants.
        num_bytes: Size of the file.
        tensors: Rows of the last table.
        width: Characters to a line.
    """
    from rich.console import Console
    from rich.table import Table

    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None)
    console.print(heading)

    table = Table("signature", "", "name", "dtype", "shape", "scale", "zero point")
    for row in itertools.chain.from_iterable(map(_signature_rows, signatures)):
        table.add_row(*row)
    console.print(table)

    ops = Table("op", "count")
    ops.columns[1].justify = "right"
    for name, count in op_counts.items():
        ops.add_row(name, str(count))
    console.print(ops)

    layers = Table("layer", "bytes", "of the file")
    for column in layers.columns[1:]:
        column.justify = "right"
    for layer, count in layer_bytes.items():
        layers.add_row(layer, f"{count:,}", f"{count / num_bytes:.1%}")
    console.print(layers)

    headings = ("tensor", "dtype", "shape", "scales", "zero point", "zeros", "distinct", "bytes")
    table = Table(*headings)
    table.columns[0].overflow = "ellipsis"
    table.columns[0].no_wrap = True
    for column in table.columns[5:]:
        column.justify = "right"
    for tensor in tensors:
        table.add_row(*_tensor_row(tensor))
    console.print(table)
    return text.getvalue()


def _signature_rows(signature: SignatureSummary) -> Iterator[tuple[str, ...]]:
    for side, tensors in (("in", signature.inputs), ("out", signature.outputs)):
        for name, tensor in tensors.items():
            quantization = (_scales(tensor), _zero_points(tensor))
            yield (signature.key, side, name, tensor.dtype, _shape(tensor), *quantization)


def _tensor_row(tensor: TensorSummary) -> tuple[str, ...]:
    sparsity, distinct = tensor.sparsity, tensor.num_distinct
    return (
        tensor.name.split(";")[0],
        tensor.dtype,
        _shape(tensor),
        _scales(tensor),
        _zero_points(tensor),
        "" if sparsity is None else f"{sparsity:.1%}",
        "" if distinct is None else str(distinct),
        f"{tensor.num_bytes:,}" if tensor.is_constant else "",
    )


def _shape(tensor: TensorSummary) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _scales(tensor: TensorSummary) -> str:
    if len(tensor.scales) <= 1:
        return "".join(f"{scale:.6g}" for scale in tensor.scales)
    low, high = min(tensor.scales), max(tensor.scales)
    return f"{len(tensor.scales)} on axis {tensor.quantized_axis}: {low:.2g}…{high:.2g}"


def _zero_points(tensor: TensorSummary) -> str:
    return ", ".join(str(zero) for zero in sorted(set(tensor.zero_points)))
