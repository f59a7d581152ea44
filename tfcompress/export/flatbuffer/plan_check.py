"""The plan beside the file: nothing in int8 that the plan did not say, and all that it said.

Read from the file alone: each planned tensor is found by its name, each input by its signature's
name. Every operator is then accounted for: it computes a planned tensor from codes and constants
that are codes, it moves codes, it is a QUANTIZE or DEQUANTIZE between both worlds, or it has no
int8 tensor at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.flatbuffer.constants import stored_layout
from tfcompress.export.flatbuffer.editing import (
    constant,
    grid_of,
    op_code,
    op_name,
    parameters,
    used_indices,
)
from tfcompress.export.flatbuffer.int8_ops import (
    ARITHMETIC_OPS,
    COMPARE_OPS,
    FUNCTION_OPS,
    MOVE_OPS,
    SELECT_OPS,
    WEIGHT_OPS,
)
from tfcompress.export.flatbuffer.lookup import KERNELS, kernel_computes
from tfcompress.export.flatbuffer.planned import Kind, PlannedTensor

_OPERATOR, _TYPE = schema.BuiltinOperator, schema.TensorType
_QUANTIZES = (_OPERATOR.QUANTIZE, _OPERATOR.DEQUANTIZE)
_CODES = (_TYPE.INT8, _TYPE.INT4, _TYPE.INT2, _TYPE.INT16)
_CODE_TYPES = {8: _TYPE.INT8, 16: _TYPE.INT16}
_FLOATS = (_TYPE.FLOAT32, _TYPE.FLOAT16, _TYPE.BFLOAT16)


def check_plan(
    data: bytes,
    planned: Mapping[str, Sequence[PlannedTensor]],
    *,
    allow_float: bool = False,
) -> list[tuple[str, str]]:
    """Raises `ValueError`, naming the layers, where a file differs from its plan.

    Args:
        data: The `.tflite`.
        planned: Signature key → the planned tensors of its subgraph.
        allow_float: Accept that an operator which is planned in int8 runs in float.

    Returns:
        The layers whose kernels the file holds as they were trained, once for each, with the type
        that they are stored in, such as `"int8"` or `"int2"`.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    signatures = {s.signatureKey.decode(): s for s in model.signatureDefs or ()}
    problems: list[str] = []
    compared: list[tuple[str, str]] = []
    for key, tensors in planned.items():
        signature = signatures.get(key)
        graph = model.subgraphs[0 if signature is None else signature.subgraphIndex]
        check = _Check(model, graph, signature, tensors, allow_float)
        problems += check.problems()
        compared += check.compared
    if problems:
        shown = "; ".join(problems[:8]) + ("; …" if len(problems) > 8 else "")
        raise ValueError(f"Expected a file that holds what was planned. Received: {shown}.")
    return compared


class _Check:
    """One subgraph beside its plan."""

    def __init__(
        self,
        model: schema.ModelT,
        graph: schema.SubGraphT,
        signature: schema.SignatureDefT | None,
        planned: Sequence[PlannedTensor],
        allow_float: bool,
    ):
        self.model, self.graph, self.allow_float = model, graph, allow_float
        self.planned = {t.name: t for t in planned if t.kind is not Kind.FLOAT}
        self.inputs = {t.layer: t for t in self.planned.values() if t.kind is Kind.ROUNDED}
        # Layers whose kernel was compared with the file's.
        self.compared: list[tuple[str, str]] = []
        self.input_names = {}
        for entry in () if signature is None else signature.inputs:
            self.input_names[int(entry.tensorIndex)] = entry.name.decode()
        self.producers = {int(i): op for op in graph.operators for i in used_indices(op.outputs)}
        self.readers: dict[int, list[schema.OperatorT]] = {}
        for op in graph.operators:
            for index in set(used_indices(op.inputs)):
                self.readers.setdefault(index, []).append(op)
        held = {*used_indices(graph.inputs), *self.producers}
        # (scale, zero point) of every tensor of codes that is no constant.
        self.grids = {parameters(graph.tensors[i]) for i in held if self._has_codes(i)}

    def problems(self) -> Iterator[str]:
        found = set()
        for index in used_indices(self.graph.inputs):
            if self._has_codes(index):
                name = self.input_names.get(index, self._name(index))
                tensor = self.inputs.get(name)
                if tensor is None:
                    yield f"the input {name!r} is int8, planned float"
                else:
                    found |= {t for t in self.planned if self.planned[t].layer == name}
                    yield from self._grid(index, tensor)
        for op in self.graph.operators:
            for index in used_indices(op.outputs):
                tensor = self.planned.get(self._name(index)) if self._has_codes(index) else None
                if tensor is not None:
                    found.add(tensor.name)
                    yield from self._grid(index, tensor)
            yield from self._operator(op)
        for tensor in self.planned.values():
            is_elsewhere = tensor.kernel is None and self._holds_its_codes(tensor)
            if tensor.name not in found and not is_elsewhere:
                yield f"the tensor of {tensor.layer!r} is planned int8 and not in the file"

    def _operator(self, op: schema.OperatorT) -> Iterator[str]:
        code, layer = op_code(self.model, op), self._name(int(op.outputs[0]))
        given = [i for i in used_indices(op.inputs) if self._is_number(i)]
        results = [i for i in used_indices(op.outputs) if self._is_number(i)]
        coded = [self._has_codes(i) for i in (*given, *results)]
        if not any(coded):
            return
        tensor = self.planned.get(layer)
        if tensor is not None and tensor.table is not None and code not in _QUANTIZES:
            yield from self._table(op, code, tensor)
            return
        if code == _OPERATOR.BITCAST:
            # Looked at with the table that it leads to.
            yield from self._leads_to_a_table(op, layer)
            return
        if code == _OPERATOR.CAST:
            yield from self._compared(op, layer)
            return
        if code in _QUANTIZES:
            yield from self._quantize(code, layer, is_float=not all(coded))
            return
        if not all(coded):
            yield f"{op_name(code)} of {layer!r} has int8 and float tensors"
            return
        if code in (*MOVE_OPS, *SELECT_OPS):
            grids = {parameters(self.graph.tensors[i]) for i in (*given, *results)}
            if len(grids) != 1:
                yield f"{op_name(code)} of {layer!r} changes the scale of codes"
        elif tensor is None or tensor.kind is not Kind.COMPUTED:
            yield f"{op_name(code)} of {layer!r} runs in int8, planned float"
        elif code in WEIGHT_OPS:
            yield from self._kernel(op, code, tensor)
        elif tensor.kernel is not None:
            yield f"{op_name(code)} of {layer!r} is not an operator with the planned kernel"
        elif code not in (*ARITHMETIC_OPS, *FUNCTION_OPS):
            yield f"{op_name(code)} of {layer!r} has no known int8 form"

    def _quantize(self, code: int, layer: str, is_float: bool) -> Iterator[str]:
        if code != _OPERATOR.QUANTIZE:
            return
        tensor = self.planned.get(layer)
        if tensor is None:
            yield f"{layer!r} is quantized, which is not planned"
        elif is_float and tensor.kind is Kind.COMPUTED and not self.allow_float:
            yield f"{layer!r} is computed in float, planned int8"

    def _kernel(self, op: schema.OperatorT, code: int, tensor: PlannedTensor) -> Iterator[str]:
        kernel = tensor.kernel
        if kernel is None:
            return
        given, weights, bias, _ = WEIGHT_OPS[code]
        stored = self.graph.tensors[op.inputs[weights]]
        dtype = flatbuffer_utils.type_to_name(stored.type).lower()
        self.compared.append((kernel.layer, dtype))
        codes, scale = self._constant(stored), np.float32(np.ravel(kernel.scale))
        layout = stored_layout(kernel, tuple(stored.shape), code)
        if not np.array_equal(np.ravel(codes), np.ravel(layout)):
            yield f"the kernel of {tensor.layer!r} has other codes than were trained"
        if not np.array_equal(np.float32(stored.quantization.scale), scale):
            yield f"the kernel of {tensor.layer!r} has other scales than were trained"
        input_scale, _ = grid_of(self.graph.tensors[op.inputs[given]])
        if kernel.bias is not None and len(op.inputs) > bias and op.inputs[bias] >= 0:
            step = np.float64(np.float32(input_scale)) * scale
            added = self._constant(self.graph.tensors[op.inputs[bias]])
            off = np.abs(np.ravel(added) * step - np.ravel(kernel.bias))
            if np.any(off > step + 1e-6 * np.abs(np.ravel(kernel.bias))):
                yield f"the bias of {tensor.layer!r} is another than was trained"

    def _table(self, op: schema.OperatorT, code: int, tensor: PlannedTensor) -> Iterator[str]:
        """An operator that gives the codes of a table, from its stored values or by a function."""
        table = tensor.table
        assert table is not None
        if code == _OPERATOR.GATHER:
            stored, source = self._constant(self.graph.tensors[op.inputs[0]]), self._looked_up(op)
            if source is None:
                yield f"GATHER of {tensor.layer!r} does not look up codes"
                return
            # The index of a code is its byte: 0 … 127 before −128 … −1.
            have = np.concatenate([np.ravel(stored)[128:], np.ravel(stored)[:128]])
            is_it = np.array_equal(have, table.codes)
        else:
            source = int(op.inputs[0])
            name = next((n for n, kernel in KERNELS.items() if kernel[0] == code), "")
            if name.startswith("gelu"):
                name = "gelu_tanh" if op.builtinOptions.approximate else "gelu"
            grids = [grid_of(self.graph.tensors[i]) for i in (source, int(op.outputs[0]))]
            is_it = bool(name) and kernel_computes(name, table.codes, *grids)
        if not is_it:
            yield f"the table of {tensor.layer!r} has other codes than were trained"
        wanted = (float(np.float32(table.input_scale)), table.input_zero_point)
        if parameters(self.graph.tensors[source]) != wanted:
            yield f"the table of {tensor.layer!r} reads codes of another scale or zero point"

    def _looked_up(self, op: schema.OperatorT) -> int | None:
        """The int8 tensor whose bytes, as uint8 and then int32, are the indices of a GATHER."""
        cast = self.producers.get(int(op.inputs[1]))
        if cast is None or op_code(self.model, cast) != _OPERATOR.CAST:
            return None
        bitcast = self.producers.get(int(cast.inputs[0]))
        if bitcast is None or op_code(self.model, bitcast) != _OPERATOR.BITCAST:
            return None
        types = [
            self.graph.tensors[i].type
            for i in (bitcast.inputs[0], bitcast.outputs[0], cast.outputs[0])
        ]
        axis = op.builtinOptions.axis, getattr(op.builtinOptions, "batchDims", 0)
        is_known = types == [_TYPE.INT8, _TYPE.UINT8, _TYPE.INT32] and axis == (0, 0)
        return int(bitcast.inputs[0]) if is_known else None

    def _leads_to_a_table(self, op: schema.OperatorT, layer: str) -> Iterator[str]:
        casts = self.readers.get(int(op.outputs[0]), [])
        readers = [r for cast in casts for r in self.readers.get(int(cast.outputs[0]), [])]
        gathers = [r for r in readers if op_code(self.model, r) == _OPERATOR.GATHER]
        sources = {self._looked_up(gather) for gather in gathers if len(gather.inputs) > 1}
        if int(op.inputs[0]) not in sources:
            yield f"BITCAST of {layer!r} reads codes that no table is for"

    def _compared(self, op: schema.OperatorT, layer: str) -> Iterator[str]:
        """A CAST of codes, which only comparisons read."""
        result = int(op.outputs[0])
        readers = self.readers.get(result, [])
        is_known = all(op_code(self.model, o) in COMPARE_OPS for o in readers)
        if not is_known or self.graph.tensors[result].type != _TYPE.INT32:
            yield f"CAST of {layer!r} reads codes that nothing compares"

    def _grid(self, index: int, tensor: PlannedTensor) -> Iterator[str]:
        have = parameters(self.graph.tensors[index])
        wanted = (float(np.float32(tensor.scale)), tensor.zero_point)
        if self.graph.tensors[index].type != _CODE_TYPES[tensor.num_bits]:
            yield f"the tensor of {tensor.layer!r} has not {tensor.num_bits} bits"
        if have != wanted:
            yield f"the tensor of {tensor.layer!r} has {have} for {wanted} (scale, zero point)"

    def _holds_its_codes(self, tensor: PlannedTensor) -> bool:
        """Whether a tensor that is rounded again to its own codes is the one before."""
        return (float(np.float32(tensor.scale)), tensor.zero_point) in self.grids

    def _constant(self, tensor: schema.TensorT) -> np.ndarray:
        values = constant(self.model, tensor)
        return np.zeros(0) if values is None else values

    def _has_codes(self, index: int) -> bool:
        return self.graph.tensors[index].type in _CODES

    def _is_number(self, index: int) -> bool:
        return self.graph.tensors[index].type in (*_CODES, *_FLOATS)

    def _name(self, index: int) -> str:
        return self.graph.tensors[index].name.decode("utf-8", "replace")
