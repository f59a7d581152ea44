"""Parameters, operations and memory of a `.tflite`, counted in the file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from tfcompress.export.flatbuffer.records import OpSummary, TensorSummary
from tfcompress.export.flatbuffer.summary import FileSummary

_WEIGHTS = ("int2", "int4", "int8", "uint8", "int16", "float16", "bfloat16", "float32", "float64")
_BITS = {"int2": 2, "int4": 4, "bool": 8, "float16": 16, "bfloat16": 16, "int16": 16}
_BITS |= {"int8": 8, "uint8": 8, "int64": 64, "uint64": 64, "float64": 64, "complex64": 64}


@dataclasses.dataclass(frozen=True)
class FileFigures:
    """What `file_figures` counts.

    Attributes:
        parameters: Weights and biases; constants of shapes and axes are none.
        nonzeros: Those that are not zero.
        macs: Multiplications with addition of one run: convolutions, dense layers and products of
            matrices.
        activation_bytes: The most bytes that tensors hold at one time, where each is freed after
            its last reader. The runtime's arena is of about this size.
    """

    parameters: int
    nonzeros: int
    macs: int
    activation_bytes: int


def file_figures(summary: FileSummary) -> FileFigures:
    """Counts what is in a file; of a file with several signatures, memory is the largest one's."""
    tensors = {(t.subgraph, t.index): t for t in summary.tensors}
    weights = {t.buffer: t for t in summary.constants if _is_weight(t)}
    graphs = [
        [op for op in summary.ops if op.subgraph == number]
        for number in range(summary.num_subgraphs)
    ]
    return FileFigures(
        parameters=sum(t.size or 0 for t in weights.values()),
        nonzeros=sum(t.non_zeros or 0 for t in weights.values()),
        macs=sum(operator_macs(summary).values()),
        activation_bytes=max(
            (_peak(ops, tensors, number) for number, ops in enumerate(graphs)), default=0
        ),
    )


def operator_macs(summary: FileSummary) -> dict[str, int]:
    """Operator → multiplications with addition of one run, of operators that have any."""
    tensors = {(t.subgraph, t.index): t for t in summary.tensors}
    found: dict[str, int] = {}
    for op in summary.ops:
        if count := _macs(op, tensors):
            found[op.name] = found.get(op.name, 0) + count
    return found


def _is_weight(tensor: TensorSummary) -> bool:
    is_bias = tensor.dtype in ("int32", "int64") and bool(tensor.scales)
    return tensor.dtype in _WEIGHTS or is_bias


def _macs(op: OpSummary, tensors: dict[tuple[int, int], TensorSummary]) -> int:
    def shape(index: int) -> tuple[int, ...]:
        return tensors[op.subgraph, index].shape if index >= 0 else ()

    if not op.outputs or len(op.inputs) < 2:
        return 0
    outputs = abs(math.prod(shape(op.outputs[0])))
    if op.name in ("CONV_2D", "CONV_3D"):
        kernel = shape(op.inputs[1])
        return outputs * math.prod(kernel[1:] if op.name == "CONV_2D" else kernel[:-1])
    if op.name == "DEPTHWISE_CONV_2D":
        return outputs * math.prod(shape(op.inputs[1])[1:3])
    if op.name == "FULLY_CONNECTED":
        return outputs * shape(op.inputs[1])[-1]
    if op.name == "TRANSPOSE_CONV":
        return abs(math.prod(shape(op.inputs[2]))) * math.prod(shape(op.inputs[1])[:3])
    if op.name == "BATCH_MATMUL":
        left, right = (math.prod(shape(i)) for i in op.inputs[:2])
        # a·k and k·b values, a·b outputs: k = sqrt(left · right / outputs) per batch.
        batch = math.prod(shape(op.outputs[0])[:-2])
        inner = math.isqrt(abs(left * right) // max(1, abs(outputs) * abs(batch)))
        return outputs * inner
    return 0


def _peak(ops: list[OpSummary], tensors: dict[tuple[int, int], TensorSummary], number: int) -> int:
    def live(indices: Iterable[int]) -> list[int]:
        return [i for i in indices if i >= 0 and not tensors[number, i].is_constant]

    last: dict[int, int] = {}
    first: dict[int, int] = {}
    for position, op in enumerate(ops):
        for index in live((*op.inputs, *op.outputs)):
            last[index] = position
            first.setdefault(index, position)
    made = {i for op in ops for i in op.outputs}
    held = {i: _num_bytes(tensors[number, i]) for i in first}
    # Inputs are there from the beginning, and results until the end.
    read = {i for op in ops for i in op.inputs}
    starts = {i: first[i] if i in made else 0 for i in first}
    ends = {i: last[i] if i in read else len(ops) for i in first}
    return max(
        (
            sum(held[i] for i in first if starts[i] <= position <= ends[i])
            for position in range(len(ops))
        ),
        default=0,
    )


def _num_bytes(tensor: TensorSummary) -> int:
    return -(-abs(math.prod(tensor.shape)) * _BITS.get(tensor.dtype, 32) // 8)
