"""Instructions of an int8 file on ARM CPUs, by a table of what each operator costs.

A file costs `run + Σ over its operators (fixed + Σ price · term)`. The terms follow XNNPACK's
kernels: products of matrices are computed in tiles of 4 positions by 16 channels, over inputs
rounded up to what an instruction of the CPU multiplies at once; a depthwise kernel has 9 or 25
taps. The prices are fitted to files of single operators that were counted on emulated CPUs:
`python -m benchmarks.arm --part=operators`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfcompress.export.files import PathOrBytes
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.flatbuffer.records import OpSummary
from tfcompress.export.flatbuffer.summary import FileSummary

#: CPU → operator → term → instructions; `run` is what a run costs without any operator.
TABLE = pathlib.Path(__file__).parent / "arm_instructions.json"
# Positions and channels of a tile.
_ROWS, _COLUMNS = 4, 16
# Channels that a depthwise kernel computes at once, and the numbers of taps that there are.
_LANES, _TAPS = 8, (9, 25)

# Channels of a tile of packed weights, and how many of their inputs are multiplied at once at most.
_PACKED_COLUMNS, _PACKED_AT_ONCE = 8, 4

#: CPU → how many inputs one of its instructions multiplies for one output.
MULTIPLIED_AT_ONCE = {"cortex-a53": 1, "cortex-a76": 4, "i8mm": 8}


@dataclasses.dataclass(frozen=True)
class Terms:
    """What an operator is charged for.

    Attributes:
        kind: Its name in the table: that of LiteRT, and for a convolution of one tap
            `"CONV_2D 1x1"`. A convolution of one tap at one position is a `"FULLY_CONNECTED"`.
            Packed weights have their type in it: `"FULLY_CONNECTED int4"`.
        counts: Term → how many: `macs`, `outputs`, `inputs`, `rows` (pieces that are read from
            a place of their own).
    """

    kind: str
    counts: Mapping[str, int]


def operator_terms(summary: FileSummary, at_once: int) -> list[Terms]:
    """The terms of each operator of a file.

    Args:
        summary: The file.
        at_once: See `MULTIPLIED_AT_ONCE`.
    """
    shapes = {(t.subgraph, t.index): tuple(map(abs, t.shape)) for t in summary.tensors}
    dtypes = {(t.subgraph, t.index): t.dtype for t in summary.tensors}
    return [_terms(op, shapes, dtypes, at_once) for op in summary.ops]


def count_instructions(path_or_bytes: PathOrBytes, cpu: str = "cortex-a76") -> int:
    """Instructions that an inference of an int8 file takes on an ARM CPU, one thread of XNNPACK.

    Of the networks that were counted as a whole, the table is within a few percent; `docs/arm.md`
    has the errors. Counts know neither caches nor how many instructions run at once: ratios of
    like files say something, and milliseconds do not follow from them.

    Args:
        path_or_bytes: Path of a `.tflite` file, or its bytes.
        cpu: `"cortex-a53"`, which has no int8 dot product; `"cortex-a76"`, which has one; or
            `"i8mm"`, an ARMv9 CPU with int8 products of matrices.

    Raises:
        ValueError: A CPU that is not in the table, no such file, or operators that are not in the
            table, which are named.
    """
    return instructions_of(inspect_tflite(path_or_bytes), cpu)


def instructions_of(summary: FileSummary, cpu: str) -> int:
    """The instructions of an inspected file; see `count_instructions`."""
    check_cpu(cpu)
    prices = _prices()[cpu]
    terms = operator_terms(summary, MULTIPLIED_AT_ONCE[cpu])
    unknown = sorted({t.kind for t in terms} - set(prices))
    if unknown:
        raise ValueError(
            "Expected a file of operators whose instructions are measured: "
            f"{', '.join(k for k in prices if k != 'run')}. Received: {', '.join(unknown)}. Take "
            "tfc.Latency, which runs the file, instead."
        )
    if floats := [t.name for t in summary.float_tensors]:
        raise ValueError(
            "Expected a file that computes in int8 alone, whose instructions are measured. "
            f"Received: float tensors: {', '.join(floats[:5])}. Take tfc.Latency instead."
        )
    total = prices["run"]["fixed"]
    for term in terms:
        price = prices[term.kind]
        total += price["fixed"] + sum(price.get(n, 0.0) * c for n, c in term.counts.items())
    return round(total)


def check_cpu(cpu: str) -> None:
    """Checks the name of a CPU.

    Raises:
        ValueError: It is not in the table.
    """
    if cpu not in MULTIPLIED_AT_ONCE:
        known = ", ".join(map(repr, MULTIPLIED_AT_ONCE))
        raise ValueError(f"Expected `cpu` to be one of {known}. Received: cpu={cpu!r}")


@functools.cache
def _prices() -> dict[str, dict[str, dict[str, float]]]:
    """CPU → operator → term → instructions."""
    return json.loads(TABLE.read_text("utf-8"))


def _terms(
    op: OpSummary,
    shapes: Mapping[tuple[int, int], tuple[int, ...]],
    dtypes: Mapping[tuple[int, int], str],
    at_once: int,
) -> Terms:
    inputs = [shapes[op.subgraph, i] for i in op.inputs if i >= 0]
    output = shapes[op.subgraph, op.outputs[0]]
    weights = dtypes.get((op.subgraph, op.inputs[1])) if len(op.inputs) > 1 else None
    if weights in ("int4", "int2"):
        return _packed(weights, inputs, output, at_once)
    return _TERMS.get(op.name, _moves)(op.name, inputs, output, at_once)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def _product(
    kind: str, positions: int, channels: int, taps: int, inputs: int, at_once: int
) -> Terms:
    """A product of matrices, or a convolution as one."""
    wide = _up(channels, _COLUMNS)
    tall = _up(positions, _ROWS) if positions > 1 else 1
    counts = {"macs": tall * wide * taps * _up(inputs, at_once), "outputs": tall * wide}
    if taps > 1:
        counts["rows"] = tall * taps * (wide // _COLUMNS)
    return Terms(kind, counts)


def _convolution(name: str, inputs: Sequence, output: tuple[int, ...], at_once: int) -> Terms:
    channels, *taps, depth = inputs[1]
    positions = math.prod(output[:-1])
    kind = name if math.prod(taps) > 1 else f"{name} 1x1" if positions > 1 else "FULLY_CONNECTED"
    return _product(kind, positions, channels, math.prod(taps), depth, at_once)


def _dense(name: str, inputs: Sequence, output: tuple[int, ...], at_once: int) -> Terms:
    units, given = inputs[1]
    positions = math.prod(output) // units
    kind = name if positions == 1 else "CONV_2D 1x1"
    return _product(kind, positions, units, 1, given, at_once)


def _packed(dtype: str, inputs: Sequence, output: tuple[int, ...], at_once: int) -> Terms:
    """A product with packed weights: no kernel multiplies them eight at once."""
    units, given = inputs[1]
    positions, wide = math.prod(output) // units, _up(units, _PACKED_COLUMNS)
    # A tile of fewer positions takes less in 4 bits.
    tall = positions if dtype == "int4" or positions == 1 else _up(positions, _ROWS)
    products = tall * wide * _up(given, min(at_once, _PACKED_AT_ONCE))
    kind = "FULLY_CONNECTED" if positions == 1 else "CONV_2D 1x1"
    return Terms(f"{kind} {dtype}", {"macs": products, "outputs": tall * wide})


def _matmul(name: str, inputs: Sequence, output: tuple[int, ...], at_once: int) -> Terms:
    batch = math.prod(output[:-2])
    inner = math.prod(inputs[0]) // max(1, batch * output[-2])
    one = _product(name, output[-2], output[-1], 1, inner, at_once)
    return Terms(name, {term: batch * count for term, count in one.counts.items()})


def _transposed(name: str, inputs: Sequence, output: tuple[int, ...], at_once: int) -> Terms:
    channels, *taps, depth = inputs[1]
    positions = math.prod(inputs[2][:-1])
    return _product(name, positions, channels, math.prod(taps), depth, at_once)


def _depthwise(name: str, inputs: Sequence, output: tuple[int, ...], at_once: int) -> Terms:
    taps = math.prod(inputs[1][1:3])
    taps = next((known for known in _TAPS if taps <= known), taps)
    positions, wide = math.prod(output[:-1]), _up(output[-1], _LANES)
    counts = {"macs": positions * wide * taps, "outputs": positions * wide, "rows": positions}
    return Terms(name, counts)


def _elementwise(name: str, inputs: Sequence, output: tuple[int, ...], at_once: int) -> Terms:
    counts = {"outputs": math.prod(output)}
    small = min((math.prod(shape) for shape in inputs), default=1)
    if len(inputs) > 1 and 1 < small < counts["outputs"]:
        # A row for each position at which the smaller one is read again.
        counts["rows"] = counts["outputs"] // output[-1]
    return Terms(name, counts)


def _reduction(name: str, inputs: Sequence, output: tuple[int, ...], at_once: int) -> Terms:
    return Terms(name, {"inputs": math.prod(inputs[0]), "outputs": math.prod(output)})


def _moves(name: str, inputs: Sequence, output: tuple[int, ...], at_once: int) -> Terms:
    return Terms(name, {"outputs": math.prod(output)})


_TERMS: dict[str, Callable[[str, Sequence[Any], tuple[int, ...], int], Terms]] = {
    "CONV_2D": _convolution,
    "FULLY_CONNECTED": _dense,
    "BATCH_MATMUL": _matmul,
    "TRANSPOSE_CONV": _transposed,
    "DEPTHWISE_CONV_2D": _depthwise,
    **dict.fromkeys(("ADD", "SUB", "MUL"), _elementwise),
    **dict.fromkeys(("MEAN", "SUM"), _reduction),
}
