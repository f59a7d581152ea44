"""Files of one operator, written by hand: what LiteRT's runtime takes and computes."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

_TYPES = {
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.float32): schema.TensorType.FLOAT32,
}


def one_op(name, inputs, output, *, constants=(), options=None, version=1, scales=None):
    """The bytes of a `.tflite` that holds one operator.

    Args:
        name: Of the builtin operator, such as `"ADD"`.
        inputs: Arrays, whose shapes and types the inputs have.
        output: `(shape, dtype)`.
        constants: Positions of the inputs whose values are in the file.
        options: `(name, {field: value})` of the operator's options.
        version: Of the operator.
        scales: One scale per input and one for the output, for int8 tensors; 0.1 by default.
    """
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.subgraphs = 3, [schema.BufferT()], [graph]
    graph.name, graph.tensors = b"main", []
    scales = scales or [0.1] * (len(inputs) + 1)

    def add(label, shape, dtype, scale, values=None):
        tensor = schema.TensorT()
        tensor.name, tensor.shape = label.encode(), list(shape)
        tensor.type, tensor.buffer = _TYPES[np.dtype(dtype)], 0
        if np.dtype(dtype) == np.int8:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [0]
        if values is not None:
            model.buffers.append(schema.BufferT())
            data = np.ascontiguousarray(values).tobytes()
            model.buffers[-1].data = np.frombuffer(data, np.uint8)
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    given = [
        add(f"in{i}", x.shape, x.dtype, scales[i], x if i in constants else None)
        for i, x in enumerate(inputs)
    ]
    graph.inputs = [index for i, index in enumerate(given) if i not in constants]
    graph.outputs = [add("out", *output, scales[-1])]
    code, op = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
    op.inputs, op.outputs = given, list(graph.outputs)
    if options is not None:
        kind, fields = options
        op.builtinOptions = getattr(schema, f"{kind}OptionsT")()
        op.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
        for field, value in fields.items():
            setattr(op.builtinOptions, field, value)
    model.operatorCodes, graph.operators = [code], [op]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run(data, inputs):
    """`(output, whether XNNPACK runs it)`; raises `RuntimeError` where LiteRT refuses the file."""
    runtime = Interpreter(model_content=data)
    runtime.allocate_tensors()
    for detail, values in zip(runtime.get_input_details(), inputs, strict=True):
        runtime.set_tensor(detail["index"], values)
    runtime.invoke()
    output = runtime.get_tensor(runtime.get_output_details()[0]["index"])
    return output, any(op["op_name"] == "DELEGATE" for op in runtime._get_ops_details())
