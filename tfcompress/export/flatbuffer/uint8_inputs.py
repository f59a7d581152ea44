"""uint8 codes as inputs, for apps that feed pixels as they are."""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.flatbuffer.editing import add_tensor, opcode_index, parameters, quantization

_INT8, _UINT8 = schema.TensorType.INT8, schema.TensorType.UINT8


def with_uint8_inputs(data: bytes) -> bytes:
    """A file whose int8 inputs are uint8, of the same scale and a zero point that is 128 more.

    A QUANTIZE takes 128 off each code, which is exact.

    Args:
        data: A `.tflite`.

    Raises:
        ValueError: It has no int8 input.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    changed = 0
    for number, graph in enumerate(model.subgraphs):
        added = []
        for index in [int(i) for i in graph.inputs]:
            tensor = graph.tensors[index]
            grid = parameters(tensor)
            if tensor.type != _INT8 or grid is None:
                continue
            given = add_tensor(
                model, graph, tensor, _UINT8, quantization=quantization(grid[0], grid[1] + 128)
            )
            tensor.name += b"_int8"
            op = schema.OperatorT()
            op.opcodeIndex = opcode_index(model, schema.BuiltinOperator.QUANTIZE, 2)
            op.inputs, op.outputs = [given], [index]
            op.builtinOptionsType = schema.BuiltinOptions.QuantizeOptions
            op.builtinOptions = schema.QuantizeOptionsT()
            added.append(op)
            graph.inputs = [given if int(i) == index else int(i) for i in graph.inputs]
            for signature in model.signatureDefs or ():
                for entry in signature.inputs if signature.subgraphIndex == number else ():
                    if entry.tensorIndex == index:
                        entry.tensorIndex = given
        graph.operators = [*added, *(graph.operators or ())]
        changed += len(added)
    if not changed:
        raise ValueError(
            "Expected int8 inputs, to make uint8 ones of them. Received: a file without any, with "
            "input_type='uint8'. Leave input_type at 'int8' where inputs are float or integers."
        )
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
