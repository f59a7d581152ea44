"""Tables from codes to codes: a function of each value as LiteRT's operators compute it exactly.

Where an operator of LiteRT is known to give the codes of a table, it computes the function. Any
other table is stored: BITCAST reads the int8 codes as uint8, CAST makes int32 indices of them, and
GATHER looks them up. The three are not in XNNPACK; on one core of an x86-64 they take 6 ns a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.export.flatbuffer.editing import (
    add_tensor,
    grid_of,
    opcode_index,
    quantization,
)
from tfcompress.export.flatbuffer.planned import PlannedTensor, Table

_OPERATOR, _TYPE, _OPTIONS = schema.BuiltinOperator, schema.TensorType, schema.BuiltinOptions
# How near to a half a value may be, in steps, before rounding depends on a float's last bit.
_NEAR_HALF = 1e-3


def _exponential(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp(x)


def _logarithm(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(x)


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _options(name: str, **values: object) -> tuple[int, object]:
    options = getattr(schema, f"{name}T")()
    for key, value in values.items():
        setattr(options, key, value)
    return getattr(_OPTIONS, name), options


#: Function → operator, its version for int8, its options, the function. Of these, XNNPACK takes
#: ELU; all of them evaluate the function at the 256 codes, in float, and round.
KERNELS: dict[str, tuple[int, int, tuple[int, object] | None, Callable]] = {
    "elu": (_OPERATOR.ELU, 1, None, _elu),
    "exp": (_OPERATOR.EXP, 2, _options("ExpOptions"), _exponential),
    "log": (_OPERATOR.LOG, 2, None, _logarithm),
    "gelu": (_OPERATOR.GELU, 2, _options("GeluOptions", approximate=False), _gelu),
    "gelu_tanh": (_OPERATOR.GELU, 2, _options("GeluOptions", approximate=True), _gelu_tanh),
}


def kernel_computes(
    name: str, table: np.ndarray, given: tuple[float, int], result: tuple[float, int]
) -> bool:
    """Whether a kernel surely gives the codes of a table.

    Not where a value lies so near to a half that the rounding of the runtime's own float function
    decides, nor where it is not finite.

    Args:
        name: One of `KERNELS`.
        table: (256,) codes.
        given: Scale and zero point of the input.
        result: Scale and zero point of the output.
    """
    x = (np.arange(-128, 128) - given[1]) * np.float64(np.float32(given[0]))
    steps = KERNELS[name][3](x) / np.float64(np.float32(result[0])) + result[1]
    if not np.all(np.isfinite(steps)):
        return False
    clipped = np.clip(steps, -128.0, 127.0)
    is_near_half = np.abs(clipped - np.floor(clipped) - 0.5) < _NEAR_HALF
    return not is_near_half.any() and np.array_equal(np.rint(clipped), table)


def write_table(
    model: schema.ModelT,
    graph: schema.SubGraphT,
    tensor: PlannedTensor,
    source: int,
    result: int,
    indexed: dict[int, int],
) -> list[schema.OperatorT]:
    """The operators that give the planned tensor from the codes of its input.

    Args:
        model: The file.
        graph: The subgraph.
        tensor: A planned tensor with a table.
        source: The int8 tensor of the input.
        result: The int8 tensor of the output.
        indexed: int8 tensor → its codes as indices, where a table has made them already.

    Raises:
        ValueError: The input has another scale or zero point than the table was made for.
    """
    table = tensor.table
    assert table is not None
    given = grid_of(graph.tensors[source])
    check_grid(table, given)
    name = table.kernel
    if name and kernel_computes(name, table.codes, given, (tensor.scale, tensor.zero_point)):
        code, version, options, _ = KERNELS[name]
        return [_operator(model, code, version, [source], [result], options)]
    ops = []
    if source not in indexed:
        like, stem = graph.tensors[source], graph.tensors[source].name.decode("utf-8", "replace")
        unsigned = add_tensor(model, graph, like, _TYPE.UINT8, name=f"{stem}/unsigned")
        indexed[source] = add_tensor(model, graph, like, _TYPE.INT32, name=f"{stem}/indices")
        bitcasts = _options("BitcastOptions")
        casts = _options("CastOptions", inDataType=_TYPE.UINT8, outDataType=_TYPE.INT32)
        ops = [
            _operator(model, _OPERATOR.BITCAST, 1, [source], [unsigned], bitcasts),
            _operator(model, _OPERATOR.CAST, 1, [unsigned], [indexed[source]], casts),
        ]
    row = schema.TensorT()
    row.shape, row.shapeSignature, row.hasRank = [256], None, True
    row.name = f"{tensor.name}/table".encode()
    grid = quantization(tensor.scale, tensor.zero_point)
    # uint8 goes through 0 … 127, then through the codes −128 … −1.
    values = np.roll(table.codes, 128)
    stored = add_tensor(model, graph, row, _TYPE.INT8, quantization=grid, data=values)
    gathers = _options("GatherOptions", axis=0)
    inputs = [stored, indexed[source]]
    return [*ops, _operator(model, _OPERATOR.GATHER, 2, inputs, [result], gathers)]


def check_grid(table: Table, given: tuple[float, int]) -> None:
    """Raises `ValueError` where codes have another scale or zero point than a table expects."""
    wanted = float(np.float32(table.input_scale)), table.input_zero_point
    if given != wanted:
        raise ValueError(f"Expected codes of scale and zero point {wanted}. Received: {given}.")


def _operator(
    model: schema.ModelT,
    code: int,
    version: int,
    inputs: list[int],
    outputs: list[int],
    options: tuple[int, object] | None,
) -> schema.OperatorT:
    op = schema.OperatorT()
    op.opcodeIndex = opcode_index(model, code, version)
    op.inputs, op.outputs = inputs, outputs
    if options is not None:
        op.builtinOptionsType, op.builtinOptions = options
    return op
