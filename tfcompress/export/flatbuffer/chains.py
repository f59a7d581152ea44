"""Which operator of a converted graph gives each planned tensor.

Between an operator and the QUANTIZE that marks its result there may stand operators that only move
values (a Conv1D is a RESHAPE, a CONV_2D and a RESHAPE). A ReLU that the converter left alone is
fused into the operator before it. Equal calls, which the converter has merged, are parted again
where the plan gives their results different codes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.export.flatbuffer.editing import (
    add_tensor,
    constant,
    op_code,
    op_name,
    opcode_index,
    parameters,
    used_indices,
)
from tfcompress.export.flatbuffer.int8_ops import FUSES_RELU, MOVE_OPS, RELU_OPS, TABLE_OPS
from tfcompress.export.flatbuffer.planned import Kind, PlannedTensor, mark_number

_OPERATOR, _TYPE = schema.BuiltinOperator, schema.TensorType
_CONVOLUTIONS = (_OPERATOR.CONV_2D, _OPERATOR.DEPTHWISE_CONV_2D)


@dataclasses.dataclass
class Computed:
    """What was found.

    Attributes:
        ops: The operators in running order.
        marks: id of a QUANTIZE → number of the planned tensor that it marks.
        marked: ids of the DEQUANTIZEs of marks.
        results: id of an operator → the planned tensor that it computes.
        readers: Tensor → the operators that read it.
        producers: Tensor → the operator that gives it.
        most: The largest number that marks a tensor.
    """

    model: schema.ModelT
    graph: schema.SubGraphT
    ops: list[schema.OperatorT]
    marks: dict[int, int] = dataclasses.field(default_factory=dict)
    marked: set[int] = dataclasses.field(default_factory=set)
    results: dict[int, PlannedTensor] = dataclasses.field(default_factory=dict)
    readers: dict[int, list[schema.OperatorT]] = dataclasses.field(default_factory=dict)
    producers: dict[int, schema.OperatorT] = dataclasses.field(default_factory=dict)
    most: int = 0

    def describe(self, tensor: int) -> str:
        """What gives a tensor, for a message."""
        op = self.producers.get(tensor)
        name = self.graph.tensors[tensor].name.decode("utf-8", "replace")
        return name if op is None else f"{op_name(op_code(self.model, op))} ({name})"


def find_computed(
    model: schema.ModelT, graph: schema.SubGraphT, planned: Sequence[PlannedTensor]
) -> Computed:
    """Finds the marks of a subgraph and the operator that computes each marked tensor.

    Fuses ReLUs and parts merged calls in place.
    """
    found = Computed(model, graph, list(graph.operators))
    _index(found)
    _read_values(found)
    for op in found.ops:
        number = _mark(found, op)
        if number is None:
            continue
        found.most = max(found.most, number)
        if number <= len(planned):
            found.marks[id(op)] = number
            found.marked |= {id(r) for r in found.readers.get(int(op.outputs[0]), [])}
    for op in list(found.ops):
        number = found.marks.get(id(op))
        if number is not None and planned[number - 1].kind is Kind.COMPUTED:
            _assign(found, op, planned[number - 1])
    return found


def _read_values(found: Computed) -> None:
    """Puts a DEQUANTIZE between every mark and an operator that reads its codes.

    The converter makes a FULLY_CONNECTED of a batched product with a constant, and lets it read
    what the DEQUANTIZE before it reads.
    """
    for mark in list(found.ops):
        if _mark(found, mark) is None:
            continue
        index = int(mark.outputs[0])
        readers = found.readers.get(index, [])
        direct = [op for op in readers if op_code(found.model, op) != _OPERATOR.DEQUANTIZE]
        if not direct:
            continue
        tensor = found.graph.tensors[index]
        values = add_tensor(found.model, found.graph, tensor, _TYPE.FLOAT32)
        op = schema.OperatorT()
        op.opcodeIndex = opcode_index(found.model, _OPERATOR.DEQUANTIZE, 2)
        op.inputs, op.outputs = [index], [values]
        op.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
        op.builtinOptions = schema.DequantizeOptionsT()
        found.ops.insert(found.ops.index(mark) + 1, op)
        for reader in direct:
            reader.inputs = [values if int(i) == index else int(i) for i in reader.inputs]
    _index(found)


def _index(found: Computed) -> None:
    found.readers.clear()
    found.producers.clear()
    for op in found.ops:
        _link(found, op)


def _link(found: Computed, op: schema.OperatorT) -> None:
    """Notes what an operator reads and gives."""
    for index in set(used_indices(op.inputs)):
        found.readers.setdefault(index, []).append(op)
    for index in used_indices(op.outputs):
        found.producers[index] = op


def _unlink(found: Computed, op: schema.OperatorT) -> None:
    """Forgets what an operator reads and gives, before it changes or is taken out."""
    for index in set(used_indices(op.inputs)):
        left = [reader for reader in found.readers.pop(index, []) if reader is not op]
        if left:
            found.readers[index] = left
    for index in used_indices(op.outputs):
        if found.producers.get(index) is op:
            del found.producers[index]


def _mark(found: Computed, op: schema.OperatorT) -> int | None:
    if op_code(found.model, op) != _OPERATOR.QUANTIZE:
        return None
    tensor = found.graph.tensors[op.outputs[0]]
    grid = parameters(tensor)
    return mark_number(*grid) if grid is not None and tensor.type == _TYPE.UINT8 else None


def _assign(found: Computed, mark: schema.OperatorT, tensor: PlannedTensor) -> None:
    """Notes which operator computes the tensor that `mark` marks, if one does."""
    chain = _chain(found, int(mark.inputs[0]))
    if not chain:
        return
    chain = _fuse_bias(found, _fuse_relu(found, chain))
    if not _is_own(found, chain, mark):
        chain = _part(found, chain, mark)
    found.results[id(chain[-1])] = tensor


def _chain(found: Computed, index: int) -> list[schema.OperatorT]:
    """Operators from the one that gives a tensor back to the one that computes its values."""
    chain = []
    while True:
        op = found.producers.get(index)
        if op is None or id(op) in found.marked:
            # Nothing but moves: the arithmetic between two sets of codes changes no value.
            return []
        chain.append(op)
        code = op_code(found.model, op)
        if code not in MOVE_OPS or (code in TABLE_OPS and _reads_table(found, op)):
            return chain
        given = [i for i in used_indices(op.inputs) if _is_computed(found, i)]
        if len(given) != 1:
            return []
        index = given[0]


def _reads_table(found: Computed, op: schema.OperatorT) -> bool:
    """Whether what an operator looks up is a constant of floats."""
    table = found.graph.tensors[op.inputs[0]]
    return table.type == _TYPE.FLOAT32 and found.model.buffers[table.buffer].data is not None


def _is_computed(found: Computed, index: int) -> bool:
    tensor = found.graph.tensors[index]
    return tensor.type == _TYPE.FLOAT32 and found.model.buffers[tensor.buffer].data is None


def _fuse_relu(found: Computed, chain: list[schema.OperatorT]) -> list[schema.OperatorT]:
    """Fuses the ReLU that computes a tensor into the operator before it."""
    relu = chain[-1]
    fused = RELU_OPS.get(op_code(found.model, relu))
    before = found.producers.get(int(relu.inputs[0]))
    if fused is None or before is None or op_code(found.model, before) not in FUSES_RELU:
        return chain
    if before.builtinOptions.fusedActivationFunction:
        return chain
    before = _in_place_of(found, before, relu)
    before.builtinOptions.fusedActivationFunction = fused
    return [*chain[:-1], before]


def _fuse_bias(found: Computed, chain: list[schema.OperatorT]) -> list[schema.OperatorT]:
    """Makes a constant that is added to a convolution its bias.

    The converter leaves it apart where equal convolutions, which it has merged, are read by others.
    """
    add = chain[-1]
    if op_code(found.model, add) != _OPERATOR.ADD:
        return chain
    for index, other in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        before, values = found.producers.get(int(index)), _constant(found, int(other))
        if before is None or values is None or op_code(found.model, before) not in _CONVOLUTIONS:
            continue
        bias = _constant(found, int(before.inputs[2])) if len(before.inputs) > 2 else None
        if bias is None or np.any(bias) or values.size not in (1, bias.size):
            continue
        if before.builtinOptions.fusedActivationFunction:
            continue
        merged = _in_place_of(found, before, add)
        merged.builtinOptions.fusedActivationFunction = add.builtinOptions.fusedActivationFunction
        like = found.graph.tensors[int(before.inputs[2])]
        added = np.array(np.broadcast_to(values.ravel(), bias.shape), np.float32)
        index = add_tensor(found.model, found.graph, like, _TYPE.FLOAT32, data=added.view(np.uint8))
        _unlink(found, merged)
        merged.inputs = [*(int(i) for i in before.inputs[:2]), index]
        _link(found, merged)
        return [*chain[:-1], merged]
    return chain


def _in_place_of(
    found: Computed, op: schema.OperatorT, follower: schema.OperatorT
) -> schema.OperatorT:
    """An operator that gives what its `follower` gives: itself, or a copy if others read it."""
    result = int(op.outputs[0])
    is_read = len(found.readers[result]) > 1 or result in set(used_indices(found.graph.outputs))
    _unlink(found, follower)
    if is_read:
        op = _copy(op)
        found.ops[found.ops.index(follower)] = op
    else:
        found.ops.remove(follower)
        _unlink(found, op)
    op.outputs = follower.outputs
    _link(found, op)
    return op


def _copy(op: schema.OperatorT) -> schema.OperatorT:
    """A copy with options of its own: a ReLU that is fused later belongs to one of the two."""
    copied = copy.copy(op)
    copied.builtinOptions = copy.copy(op.builtinOptions)
    return copied


def _constant(found: Computed, index: int) -> np.ndarray | None:
    """The values of a constant of floats."""
    return constant(found.model, found.graph.tensors[index]) if index >= 0 else None


def _is_own(found: Computed, chain: list[schema.OperatorT], mark: schema.OperatorT) -> bool:
    """Whether nothing but `mark`, or a repetition of it, reads what a chain gives."""
    outputs = set(used_indices(found.graph.outputs))
    followers = [mark, *chain[:-1]]
    for op, follower in zip(chain, followers, strict=True):
        for index in used_indices(op.outputs):
            for reader in found.readers.get(index, []):
                is_same = found.marks.get(id(reader)) == found.marks.get(id(mark))
                if reader is not follower and not (is_same and id(reader) in found.marks):
                    return False
            if index in outputs:
                return False
    return id(chain[-1]) not in found.results


def _part(
    found: Computed, chain: list[schema.OperatorT], mark: schema.OperatorT
) -> list[schema.OperatorT]:
    """Copies of the operators of a chain, whose result only `mark` reads."""
    copies: list[schema.OperatorT] = []
    renamed: dict[int, int] = {}
    position = found.ops.index(mark)
    for op in reversed(chain):
        copied = _copy(op)
        copied.inputs = [renamed.get(int(i), int(i)) for i in op.inputs]
        copied.outputs = []
        for index in used_indices(op.outputs):
            found.graph.tensors.append(copy.copy(found.graph.tensors[index]))
            renamed[index] = len(found.graph.tensors) - 1
            copied.outputs.append(renamed[index])
        found.ops.insert(position, copied)
        _link(found, copied)
        position += 1
        copies.insert(0, copied)
    _unlink(found, mark)
    mark.inputs = [renamed[int(mark.inputs[0])]]
    _link(found, mark)
    outputs = set(used_indices(found.graph.outputs))
    for op in chain:
        # What only this mark has read.
        if any(i in found.readers or i in outputs for i in used_indices(op.outputs)):
            break
        found.ops.remove(op)
        _unlink(found, op)
    return copies
