"""Comparisons of codes with constants."""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

from tfcompress.export.flatbuffer.coded_graph import CodedGraph
from tfcompress.export.flatbuffer.editing import (
    add_tensor,
    constant,
    grid_of,
    op_name,
    opcode_index,
)
from tfcompress.export.flatbuffer.int8_ops import CAST_VERSION, COMPARE_OPS
from tfcompress.export.flatbuffer.operands import compared_codes

_OPERATOR, _TYPE = schema.BuiltinOperator, schema.TensorType


def write_comparison(coded: CodedGraph, op: schema.OperatorT, code: int) -> list[schema.OperatorT]:
    """Operators that compare codes, as int32, with those from which on the comparison holds.

    Args:
        coded: The subgraph, which holds codes of one of the operator's inputs.
        op: The comparison, float. Its inputs are replaced.
        code: Its builtin code.
    """
    model, graph = coded.model, coded.graph
    ops = []
    found = next(coded.codes[int(i)] for i in op.inputs if int(i) in coded.codes)
    if found not in coded.widened:
        like = graph.tensors[found]
        name = f"{like.name.decode('utf-8', 'replace')}/int32"
        coded.widened[found] = add_tensor(model, graph, like, _TYPE.INT32, name=name)
        cast = schema.OperatorT()
        cast.opcodeIndex = opcode_index(model, _OPERATOR.CAST, CAST_VERSION)
        cast.inputs, cast.outputs = [found], [coded.widened[found]]
        cast.builtinOptionsType = schema.BuiltinOptions.CastOptions
        cast.builtinOptions = schema.CastOptionsT()
        cast.builtinOptions.inDataType = _TYPE.INT8
        cast.builtinOptions.outDataType = _TYPE.INT32
        ops.append(cast)
    grid, is_first = grid_of(graph.tensors[found]), int(op.inputs[0]) in coded.codes
    name = op_name(code if is_first else COMPARE_OPS[code])
    inputs = []
    for index in map(int, op.inputs):
        if index in coded.codes:
            inputs.append(coded.widened[found])
            continue
        like = graph.tensors[index]
        given = constant(model, like)
        assert given is not None
        values = compared_codes(name, given, grid)
        inputs.append(add_tensor(model, graph, like, _TYPE.INT32, data=values))
    op.inputs = inputs
    return [*ops, op]
