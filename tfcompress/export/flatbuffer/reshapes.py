"""RESHAPE operators that do nothing, or that another one makes superfluous, are taken out.

A layer on a sequence reshapes it to an image and back; between two of them the converter keeps
both reshapes, because a QUANTIZE and a DEQUANTIZE stood there.
"""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

from tfcompress.export.flatbuffer.editing import op_code, used_indices


def merge_reshapes(model: schema.ModelT, graph: schema.SubGraphT) -> None:
    """Lets every RESHAPE read what is not reshaped before, and drops those that no one needs."""
    sources: dict[int, int] = {}
    outputs = set(used_indices(graph.outputs))
    same: dict[int, int] = {}
    for op in graph.operators:
        op.inputs = [same.get(int(i), int(i)) for i in op.inputs]
        if op_code(model, op) != schema.BuiltinOperator.RESHAPE:
            continue
        given, result = op.inputs[0], int(op.outputs[0])
        op.inputs[0] = sources.get(given, given)
        sources[result] = op.inputs[0]
        if _shape(graph, op.inputs[0]) == _shape(graph, result) and result not in outputs:
            same[result] = op.inputs[0]
    needed, kept = set(outputs), []
    for op in reversed(graph.operators):
        is_reshape = op_code(model, op) == schema.BuiltinOperator.RESHAPE
        if not is_reshape or int(op.outputs[0]) in needed:
            kept.append(op)
            needed.update(used_indices(op.inputs))
    graph.operators = kept[::-1]


def _shape(graph: schema.SubGraphT, index: int) -> tuple[int, ...]:
    shape = graph.tensors[index].shape
    return tuple(int(n) for n in (() if shape is None else shape))
