"""A subgraph that is being quantized: its new operators, and the tensors that hold codes."""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

from tfcompress.export.flatbuffer.editing import (
    add_tensor,
    constant,
    opcode_index,
    quantization,
)
from tfcompress.export.flatbuffer.int8_ops import int16_version

_OPERATOR, _TYPE = schema.BuiltinOperator, schema.TensorType
#: Bits of a code → type of its tensor.
CODE_TYPES = {8: _TYPE.INT8, 16: _TYPE.INT16}


class CodedGraph:
    """The operators written so far, and what takes the place of the converter's tensors.

    Attributes:
        ops: The operators, in running order.
        codes: Tensor of the converter's graph → tensor that holds its codes.
        floats: Tensor of the converter's graph → the float tensor that takes its place.
        dequantized: Tensor of codes → its DEQUANTIZE.
        widened: Tensor of codes → its codes as int32.
        indexed: Tensor of codes → its codes as the indices of tables.
    """

    def __init__(self, model: schema.ModelT, graph: schema.SubGraphT):
        self.model, self.graph = model, graph
        self.ops: list[schema.OperatorT] = []
        self.codes: dict[int, int] = {}
        self.floats: dict[int, int] = {}
        self.dequantized: dict[int, int] = {}
        self.widened: dict[int, int] = {}
        self.indexed: dict[int, int] = {}

    def is_float(self, index: int) -> bool:
        return self.graph.tensors[index].type == _TYPE.FLOAT32

    def is_constant(self, index: int) -> bool:
        return constant(self.model, self.graph.tensors[index]) is not None

    def is_constant_float(self, index: int) -> bool:
        return self.is_float(index) and self.is_constant(index)

    def code_tensor(
        self, like: int, name: str | None, grid: tuple[float, int], num_bits: int = 8
    ) -> int:
        """Adds a tensor of codes, of the shape of another tensor."""
        tensor = self.graph.tensors[like]
        return add_tensor(
            self.model,
            self.graph,
            tensor,
            CODE_TYPES[num_bits],
            name=name,
            quantization=quantization(*grid),
        )

    def as_float(self, index: int) -> int:
        """A float tensor of the values of a tensor, dequantized where it holds codes."""
        index = self.floats.get(index, index)
        if index not in self.codes:
            return index
        held = self.codes[index]
        if held not in self.dequantized:
            like = self.graph.tensors[held]
            found = add_tensor(self.model, self.graph, like, _TYPE.FLOAT32)
            version = int16_version(_OPERATOR.DEQUANTIZE) if like.type == _TYPE.INT16 else 2
            assert version is not None
            self.add_op(_OPERATOR.DEQUANTIZE, version, held, found)
            self.dequantized[held] = found
        return self.dequantized[held]

    def output(self, index: int, is_float: bool) -> int:
        """What takes the place of an output: its codes, unless the output is to be float."""
        index = self.floats.get(index, index)
        is_int8 = index in self.codes and not is_float
        return self.codes[index] if is_int8 else self.as_float(index)

    def add_op(self, code: int, version: int, source: int, result: int) -> None:
        """Adds a QUANTIZE or DEQUANTIZE."""
        op = schema.OperatorT()
        op.opcodeIndex = opcode_index(self.model, code, version)
        op.inputs, op.outputs = [source], [result]
        names = {_OPERATOR.QUANTIZE: "QuantizeOptions", _OPERATOR.DEQUANTIZE: "DequantizeOptions"}
        op.builtinOptionsType = getattr(schema.BuiltinOptions, names[code])
        op.builtinOptions = getattr(schema, f"{names[code]}T")()
        self.ops.append(op)
