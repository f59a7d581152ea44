"""Small edits of a flatbuffer's object tree: tensors, operator codes, what nothing refers to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.export.flatbuffer.unpack import unpack

_TYPE_NAMES = {value: name for name, value in vars(schema.TensorType).items() if name.isupper()}
_OP_CODES = {k: v for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
_OP_NAMES = {code: name for name, code in _OP_CODES.items()}


def op_code(model: schema.ModelT, op: schema.OperatorT) -> int:
    """The builtin code of an operator."""
    entry = model.operatorCodes[op.opcodeIndex]
    return max(entry.builtinCode, entry.deprecatedBuiltinCode)


def op_name(code: int) -> str:
    """The name of a builtin code, such as `"CONV_2D"`."""
    return _OP_NAMES.get(code, f"BUILTIN_{code}")


def is_op_name(name: object) -> bool:
    """Whether a builtin operator has this name."""
    return isinstance(name, str) and name in _OP_CODES


def require_version(model: schema.ModelT, op: schema.OperatorT, version: int) -> None:
    """Gives one operator at least this version, and no other operator of its code."""
    entry = model.operatorCodes[op.opcodeIndex]
    if entry.version < version:
        op.opcodeIndex = opcode_index(model, op_code(model, op), version)


def opcode_index(model: schema.ModelT, code: int, version: int) -> int:
    """The index of a builtin code of a version in the file's list, added where it is missing."""
    for index, entry in enumerate(model.operatorCodes):
        found = max(entry.builtinCode, entry.deprecatedBuiltinCode)
        if (found, entry.version) == (code, version) and not entry.customCode:
            return index
    # Codes above 127 do not fit in the field of older files, which holds this number instead.
    old = min(code, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    model.operatorCodes.append(
        schema.OperatorCodeT(deprecatedBuiltinCode=old, version=version, builtinCode=code)
    )
    return len(model.operatorCodes) - 1


def add_tensor(
    model: schema.ModelT,
    graph: schema.SubGraphT,
    like: schema.TensorT,
    dtype: int,
    *,
    name: str | None = None,
    quantization: schema.QuantizationParametersT | None = None,
    data: np.ndarray | None = None,
) -> int:
    """Adds a tensor of the shape of another one and returns its index.

    Args:
        model: The file.
        graph: The subgraph that gets it.
        like: Gives the shape, and the name where none is given.
        dtype: A `schema.TensorType`.
        name: Its name.
        quantization: Scale and zero point; `None` for a tensor without.
        data: Bytes of a constant; `None` for a tensor that an operator gives.
    """
    tensor = schema.TensorT()
    tensor.shape = like.shape
    tensor.shapeSignature = like.shapeSignature
    tensor.hasRank = like.hasRank
    tensor.type = dtype
    tensor.name = like.name if name is None else name.encode()
    tensor.quantization = quantization or schema.QuantizationParametersT()
    tensor.buffer = 0
    if data is not None:
        model.buffers.append(schema.BufferT())
        tensor.buffer = len(model.buffers) - 1
        model.buffers[tensor.buffer].data = np.frombuffer(data.tobytes(), np.uint8)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def quantization(
    scale: float | np.ndarray, zero_point: int = 0, axis: int = 0
) -> schema.QuantizationParametersT:
    """Quantization parameters of one scale, or of one per channel along `axis`."""
    scales = np.atleast_1d(np.asarray(scale, np.float32))
    found = schema.QuantizationParametersT()
    found.scale = scales
    found.zeroPoint = np.full(scales.size, zero_point, np.int64)
    found.quantizedDimension = axis if scales.size > 1 else 0
    return found


def parameters(tensor: schema.TensorT) -> tuple[float, int] | None:
    """`(scale, zero point)` of a tensor of one scale; `None` for any other."""
    found = tensor.quantization
    if found is None or found.scale is None or len(found.scale) != 1:
        return None
    return float(found.scale[0]), int(found.zeroPoint[0])


def grid_of(tensor: schema.TensorT) -> tuple[float, int]:
    """`(scale, zero point)` of a tensor that has one scale.

    Raises:
        ValueError: It has none, or several.
    """
    found = parameters(tensor)
    if found is None:
        name = tensor.name.decode("utf-8", "replace")
        raise ValueError(f"Expected a tensor of one scale. Received: {name!r}.")
    return found


def constant(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray | None:
    """The values of a constant tensor, in its shape; `None` where it is no constant."""
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return None
    shape = tuple(int(n) for n in (() if tensor.shape is None else tensor.shape))
    values = unpack(data, _TYPE_NAMES[tensor.type].lower(), int(np.prod(shape)))
    return None if values is None else values.reshape(shape)


def used_indices(indices: Sequence[int] | None) -> Iterator[int]:
    """The tensors of an operator's inputs or outputs; an input that is left out is −1."""
    return (int(i) for i in (() if indices is None else indices) if i >= 0)


def remove_unused(model: schema.ModelT) -> None:
    """Drops tensors and operator codes that nothing refers to."""
    for number, graph in enumerate(model.subgraphs):
        maps = [
            entry
            for signature in model.signatureDefs or ()
            if signature.subgraphIndex == number
            for entry in (*(signature.inputs or ()), *(signature.outputs or ()))
        ]
        _remove_unused_tensors(graph, maps)
    used = sorted({op.opcodeIndex for graph in model.subgraphs for op in graph.operators})
    places = {old: new for new, old in enumerate(used)}
    for graph in model.subgraphs:
        for op in graph.operators:
            op.opcodeIndex = places[op.opcodeIndex]
    model.operatorCodes = [model.operatorCodes[old] for old in used]


def _remove_unused_tensors(graph: schema.SubGraphT, maps: list[schema.TensorMapT]) -> None:
    lists = [graph.inputs, graph.outputs]
    for op in graph.operators:
        lists += [op.inputs, op.outputs, op.intermediates]
    used = sorted({i for indices in lists for i in used_indices(indices)})
    places = {old: new for new, old in enumerate(used)} | {-1: -1}

    def moved(indices):
        return None if indices is None else [places[int(i)] for i in indices]

    graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
    for op in graph.operators:
        op.inputs, op.outputs = moved(op.inputs), moved(op.outputs)
        op.intermediates = moved(op.intermediates)
    for entry in maps:
        entry.tensorIndex = places[entry.tensorIndex]
    graph.tensors = [graph.tensors[old] for old in used]
