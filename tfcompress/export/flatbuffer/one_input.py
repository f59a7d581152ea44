"""Dense layers of one input, which the converter makes products with a constant.

A product has one scale for its constant, and the layer was trained with one per output. As a
FULLY_CONNECTED it has them again.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.export.flatbuffer.editing import add_tensor, constant, opcode_index, used_indices

_OPERATOR = schema.BuiltinOperator


def as_fully_connected(
    model: schema.ModelT, graph: schema.SubGraphT, op: schema.OperatorT, code: int
) -> bool:
    """Makes a MUL of a dense layer with one input the FULLY_CONNECTED that it was.

    Args:
        model: The file.
        graph: The subgraph.
        op: An operator that computes a layer with a kernel, still in float.
        code: Its builtin code.

    Returns:
        Whether it was such a product.
    """
    values = {i: constant(model, graph.tensors[i]) for i in used_indices(op.inputs)}
    inputs = [i for i, value in values.items() if value is None]
    weights = [np.ravel(value) for value in values.values() if value is not None]
    if code != _OPERATOR.MUL or len(inputs) != 1 or len(weights) != 1:
        return False
    result = graph.tensors[int(op.outputs[0])]
    if graph.tensors[inputs[0]].shape[-1] != 1 or result.shape[-1] != weights[0].size:
        return False
    kernel = add_tensor(model, graph, result, result.type, data=weights[0].astype(np.float32))
    graph.tensors[kernel].shape, graph.tensors[kernel].shapeSignature = [weights[0].size, 1], None
    fused = op.builtinOptions.fusedActivationFunction
    op.opcodeIndex = opcode_index(model, _OPERATOR.FULLY_CONNECTED, 1)
    op.inputs = [inputs[0], kernel, -1]
    op.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    op.builtinOptions = schema.FullyConnectedOptionsT()
    op.builtinOptions.fusedActivationFunction = fused
    op.builtinOptions.keepNumDims = True
    return True
