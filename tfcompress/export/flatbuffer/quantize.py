"""Quantization of a converted file: every code, scale, QUANTIZE and DEQUANTIZE, from the plan.

The converter gives a float graph in which every planned tensor passes a QUANTIZE and a DEQUANTIZE
whose scale is the tensor's number in the plan (`planned`). Here an operator runs on int8 tensors
if the plan says that it computes one, or if it only moves codes. Everything else stays as the
converter wrote it: float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.flatbuffer.buffers import share_buffers, share_constants
from tfcompress.export.flatbuffer.chains import Computed, find_computed
from tfcompress.export.flatbuffer.coded_graph import CODE_TYPES, CodedGraph
from tfcompress.export.flatbuffer.comparisons import write_comparison
from tfcompress.export.flatbuffer.editing import (
    constant,
    grid_of,
    op_code,
    op_name,
    parameters,
    quantization,
    remove_unused,
    require_version,
    used_indices,
)
from tfcompress.export.flatbuffer.int8_ops import (
    ARITHMETIC_OPS,
    COMPARE_OPS,
    FUNCTION_OPS,
    MOVE_OPS,
    SELECT_OPS,
    TABLE_OPS,
    WEIGHT_OPS,
    int8_version,
    int16_version,
)
from tfcompress.export.flatbuffer.lookup import write_table
from tfcompress.export.flatbuffer.one_input import as_fully_connected
from tfcompress.export.flatbuffer.operands import (
    add_codes,
    add_operand,
    write_kernel,
)
from tfcompress.export.flatbuffer.packing import packed
from tfcompress.export.flatbuffer.planned import Kind, PlannedTensor
from tfcompress.export.flatbuffer.reshapes import merge_reshapes
from tfcompress.export.flatbuffer.runtime import require_runtime

_OPERATOR, _TYPE = schema.BuiltinOperator, schema.TensorType


class PlanError(ValueError):
    """What the converter made of the graph is not what the plan says."""


def quantize_file(
    data: bytes,
    planned: Mapping[str, Sequence[PlannedTensor]],
    *,
    float_io: bool = False,
    allow_float: bool = False,
) -> bytes:
    """Quantizes a file that was converted without optimization.

    Args:
        data: The file, in which the tensors of the plan are marked by their numbers.
        planned: Signature key → the planned tensors of its subgraph; the n-th has the number n.
        float_io: Keep float inputs and outputs, with QUANTIZE and DEQUANTIZE in the file.
        allow_float: Leave in float what the plan has in int8 and no int8 operator can compute.
            What it gives is then rounded by QUANTIZE, as in the Keras model.

    Returns:
        The file, whose inputs and outputs are int8 where the plan gives them codes.

    Raises:
        PlanError: A planned tensor that the converter dropped, or that no int8 operator gives.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    signatures = {s.signatureKey.decode(): s for s in model.signatureDefs or ()}
    for key, tensors in planned.items():
        # A file of one signature may do without the table of signatures.
        signature = signatures.get(key)
        graph = model.subgraphs[0 if signature is None else signature.subgraphIndex]
        moved = _Rewriting(model, graph, tensors, float_io, allow_float).run()
        for entry in () if signature is None else signature.outputs:
            entry.tensorIndex = moved.get(entry.tensorIndex, entry.tensorIndex)
    for graph in model.subgraphs:
        merge_reshapes(model, graph)
    remove_unused(model)
    share_buffers(model)
    for graph in model.subgraphs:
        share_constants(model, graph)
    remove_unused(model)
    require_runtime(model)
    return packed(model)


class _Rewriting:
    """Rewrites one subgraph, operator by operator in running order."""

    def __init__(
        self,
        model: schema.ModelT,
        graph: schema.SubGraphT,
        planned: Sequence[PlannedTensor],
        float_io: bool,
        allow_float: bool,
    ):
        self.model, self.graph = model, graph
        self.coded = CodedGraph(model, graph)
        self.planned = planned
        self.float_io, self.allow_float = float_io, allow_float
        self.seen: set[int] = set()

    def run(self) -> dict[int, int]:
        """Rewrites; returns outputs of the converter's graph → what takes their place."""
        self.computed: Computed = find_computed(self.model, self.graph, self.planned)
        if self.computed.most > len(self.planned):
            raise PlanError(
                f"Expected a plan of all marked tensors. Received: {len(self.planned)} tensors "
                f"for a converted graph that holds the mark {self.computed.most}."
            )
        for op in self.computed.ops:
            self._visit(op)
        moved = {}
        for index in used_indices(self.graph.outputs):
            moved[index] = self.coded.output(index, self.float_io)
        self.graph.operators = self.coded.ops
        self.graph.outputs = [moved[int(i)] for i in self.graph.outputs]
        missing = [t for n, t in enumerate(self.planned, 1) if n not in self.seen]
        # What reads nothing but a shape, such as `zeros_like` in float, is computed at conversion.
        missing = [t for t in missing if t.kind is not Kind.FLOAT]
        if missing:
            layers = ", ".join(repr(t.layer) for t in missing[:8])
            raise PlanError(
                f"Expected every planned tensor in the converted graph. Received: none for "
                f"{layers}. The converter has dropped what computes it."
            )
        return moved

    def _visit(self, op: schema.OperatorT) -> None:
        number = self.computed.marks.get(id(op))
        code = op_code(self.model, op)
        if number is not None:
            self.seen.add(number)
            self._mark(op, self.planned[number - 1])
        elif id(op) in self.computed.marked:
            self._pass_on(op)
        elif id(op) in self.computed.results and self.computed.results[id(op)].table is not None:
            self._look_up(op, self.computed.results[id(op)])
        elif id(op) in self.computed.results:
            try:
                self._compute(op, code, self.computed.results[id(op)])
            except PlanError:
                if not self.allow_float:
                    raise
                self._float(op)
        elif code in (*MOVE_OPS, *SELECT_OPS) and self._moves_codes(op):
            self._move(op, code)
        elif code in COMPARE_OPS and self._compares_codes(op):
            self.coded.ops += write_comparison(self.coded, op, code)
        else:
            self._float(op)

    # --- marks -------------------------------------------------------------------------------

    def _mark(self, op: schema.OperatorT, tensor: PlannedTensor) -> None:
        """A QUANTIZE of the converter's graph."""
        source, result = int(op.inputs[0]), int(op.outputs[0])
        if tensor.kind is Kind.FLOAT:
            self.coded.floats[result] = self.coded.as_float(source)
            return
        if source in self.coded.codes:
            have = parameters(self.graph.tensors[self.coded.codes[source]])
            if have == _parameters(tensor):
                self.coded.codes[result] = self.coded.codes[source]
            elif tensor.kind is Kind.COMPUTED:
                raise PlanError(
                    f"Expected an operator that computes {tensor.layer!r}, as planned. Received: "
                    "none, as the converter has left out what it found to change nothing. Leave "
                    "the layer out of the model."
                )
            elif tensor.num_bits != 8:
                raise PlanError(
                    f"Expected one scale of what {tensor.layer!r} reads in 16 bits. Received: two."
                )
            else:
                self.coded.codes[result] = self._quantize(
                    self.coded.codes[source], result, tensor, version=2
                )
            return
        if tensor.kind is Kind.COMPUTED and not self.allow_float:
            raise PlanError(
                f"Expected int8 operators for the layer {tensor.layer!r}, as planned. Received: "
                f"float {self.computed.describe(source)} in the converted graph."
            )
        float_source = self.coded.as_float(source)
        if self._is_int8_input(float_source):
            given = self.graph.tensors[float_source]
            given.type = CODE_TYPES[tensor.num_bits]
            given.quantization = quantization(*_parameters(tensor))
            self.coded.codes[source] = self.coded.codes[result] = float_source
        else:
            version = 1 if tensor.num_bits == 8 else int16_version(_OPERATOR.QUANTIZE)
            assert version is not None
            self.coded.codes[result] = self._quantize(float_source, result, tensor, version)

    def _quantize(self, source: int, like: int, tensor: PlannedTensor, version: int) -> int:
        found = self.coded.code_tensor(like, tensor.name, _parameters(tensor), tensor.num_bits)
        self.coded.add_op(_OPERATOR.QUANTIZE, version, source, found)
        return found

    def _is_int8_input(self, index: int) -> bool:
        """Whether an input of the subgraph is only read by equal QUANTIZEs."""
        if self.float_io or index not in set(used_indices(self.graph.inputs)):
            return False
        if index in set(used_indices(self.graph.outputs)):
            return False
        readers = self.computed.readers.get(index, [])
        if not all(id(reader) in self.computed.marks for reader in readers):
            return False
        tensors = [self.planned[self.computed.marks[id(reader)] - 1] for reader in readers]
        is_coded = all(t.kind is not Kind.FLOAT for t in tensors)
        return is_coded and len({_parameters(t) for t in tensors}) == 1

    def _pass_on(self, op: schema.OperatorT) -> None:
        """The DEQUANTIZE of a mark."""
        source, result = int(op.inputs[0]), int(op.outputs[0])
        if source in self.coded.codes:
            self.coded.codes[result] = self.coded.codes[source]
        else:
            self.coded.floats[result] = self.coded.floats.get(source, source)

    # --- operators ---------------------------------------------------------------------------

    def _compute(self, op: schema.OperatorT, code: int, tensor: PlannedTensor) -> None:
        """An operator whose result the plan gives codes."""
        if tensor.kernel is not None and as_fully_connected(self.model, self.graph, op, code):
            code = _OPERATOR.FULLY_CONNECTED
        is_known = code in (*WEIGHT_OPS, *ARITHMETIC_OPS, *FUNCTION_OPS, *TABLE_OPS)
        if not is_known or (tensor.kernel is not None and code not in WEIGHT_OPS):
            raise PlanError(
                f"Expected int8 operators for the layer {tensor.layer!r}, as planned. Received: "
                f"{op_name(code)}, of which no int8 form for it is known here."
            )
        given = op.inputs
        try:
            op.inputs = self._operands(op, code, tensor)
            if code in WEIGHT_OPS:
                write_kernel(self.model, self.graph, op, tensor)
        except ValueError as error:
            # It may stay in float after all.
            op.inputs = given
            raise PlanError(f"{op_name(code)} of the layer {tensor.layer!r}: {error}") from error
        result = int(op.outputs[0])
        self.coded.codes[result] = self.coded.code_tensor(
            result, tensor.name, _parameters(tensor), tensor.num_bits
        )
        op.outputs = [self.coded.codes[result]]
        for option, value in tensor.options:
            if not hasattr(op.builtinOptions, option):
                raise PlanError(
                    f"Expected an operator with the option {option!r} for the layer "
                    f"{tensor.layer!r}. Received: {op_name(code)}."
                )
            setattr(op.builtinOptions, option, value)
        self._require_version(op, code, tensor.num_bits)
        self.coded.ops.append(op)

    def _look_up(self, op: schema.OperatorT, tensor: PlannedTensor) -> None:
        """A table in place of the operator that marks it."""
        result = int(op.outputs[0])
        try:
            source = self._codes_of(int(op.inputs[0]))
            found = self.coded.code_tensor(result, tensor.name, _parameters(tensor))
            self.coded.ops += write_table(
                self.model, self.graph, tensor, source, found, self.coded.indexed
            )
        except ValueError as error:
            raise PlanError(f"The table of the layer {tensor.layer!r}: {error}") from error
        self.coded.codes[result] = found

    def _operands(self, op: schema.OperatorT, code: int, tensor: PlannedTensor) -> list[int]:
        """The inputs of an operator, int8 but for its kernel and bias."""
        constants = WEIGHT_OPS[code][1:3] if code in WEIGHT_OPS else ()
        inputs = [int(i) for i in op.inputs]
        for position, index in enumerate(inputs):
            if index < 0 or position in constants or not self.coded.is_float(index):
                continue
            if constant(self.model, self.graph.tensors[index]) is None:
                inputs[position] = self._codes_of(index)
            elif code not in WEIGHT_OPS and tensor.operand_grid is not None:
                inputs[position] = add_codes(self.model, self.graph, index, tensor.operand_grid)
            elif code in ARITHMETIC_OPS:
                inputs[position] = add_operand(self.model, self.graph, index, code, tensor.scale)
            elif code in TABLE_OPS:
                inputs[position] = add_codes(self.model, self.graph, index, _parameters(tensor))
            else:
                raise ValueError("Expected tensors of codes. Received: a constant operand.")
        return inputs

    def _codes_of(self, index: int) -> int:
        if index not in self.coded.codes:
            raise ValueError(f"Expected an int8 input. Received: {self.computed.describe(index)}.")
        return self.coded.codes[index]

    def _moves_codes(self, op: schema.OperatorT) -> bool:
        """Whether an operator that can move codes gets some, all of one scale, or constants."""
        floats = [i for i in used_indices(op.inputs) if self.coded.is_float(i)]
        given = [i for i in floats if i in self.coded.codes]
        if not given or not all(i in given or self.coded.is_constant(i) for i in floats):
            return False
        found = {parameters(self.graph.tensors[self.coded.codes[i]]) for i in given}
        return len(found) == 1 and not getattr(op.builtinOptions, "fusedActivationFunction", 0)

    def _move(self, op: schema.OperatorT, code: int) -> None:
        found = next(self.coded.codes[i] for i in used_indices(op.inputs) if i in self.coded.codes)
        grid = grid_of(self.graph.tensors[found])
        num_bits = 16 if self.graph.tensors[found].type == _TYPE.INT16 else 8
        if num_bits == 16 and any(map(self.coded.is_constant_float, used_indices(op.inputs))):
            raise PlanError(f"Expected {op_name(code)} of 16-bit codes alone. Received: constants.")
        op.inputs = [self._moved(int(i), grid) for i in op.inputs]
        for index in filter(self.coded.is_float, used_indices(op.outputs)):
            self.coded.codes[index] = self.coded.code_tensor(index, None, grid, num_bits)
        op.outputs = [self.coded.codes.get(int(i), int(i)) for i in op.outputs]
        self._require_version(op, code, num_bits)
        self.coded.ops.append(op)

    def _moved(self, index: int, grid: tuple[float, int]) -> int:
        """The codes of an operand of an operator that moves codes of one grid."""
        if index in self.coded.codes or index < 0 or not self.coded.is_float(index):
            return self.coded.codes.get(index, index)
        return add_codes(self.model, self.graph, index, grid)

    def _compares_codes(self, op: schema.OperatorT) -> bool:
        """Whether an operator compares codes with constants."""
        given = [i in self.coded.codes for i in used_indices(op.inputs)]
        others = [i for i in used_indices(op.inputs) if i not in self.coded.codes]
        return given.count(True) == 1 and len(others) == 1 and self.coded.is_constant(others[0])

    def _float(self, op: schema.OperatorT) -> None:
        op.inputs = [int(i) if i < 0 else self.coded.as_float(int(i)) for i in op.inputs]
        self.coded.ops.append(op)

    def _require_version(self, op: schema.OperatorT, code: int, num_bits: int) -> None:
        version = int8_version(code, op)
        if num_bits == 16:
            known = int16_version(code)
            if known is None:
                raise PlanError(
                    f"Expected operators with 16-bit activations. Received: {op_name(code)}, of "
                    "which no such form is known here."
                )
            version = known if code not in WEIGHT_OPS else max(version, known)
        require_version(self.model, op, version)


def _parameters(tensor: PlannedTensor) -> tuple[float, int]:
    return float(np.float32(tensor.scale)), int(tensor.zero_point)
