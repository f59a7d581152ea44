"""The constants of a flatbuffer: a buffer for a tensor alone, and equal buffers stored once."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema


def set_data(model: schema.ModelT, tensor: schema.TensorT, data: np.ndarray) -> None:
    """Gives a tensor a buffer of its own: the converter lets equal constants share one."""
    model.buffers.append(schema.BufferT())
    tensor.buffer = len(model.buffers) - 1
    model.buffers[tensor.buffer].data = data


def share_constants(model: schema.ModelT, graph: schema.SubGraphT) -> None:
    """Lets operators read one tensor of each constant of int32 numbers, such as a shape.

    They lose their names, of one operator among several. Tensors that nothing reads any more stay.
    Equal constants share a buffer already.

    Args:
        model: The file.
        graph: The subgraph.
    """
    first: dict[tuple, int] = {}
    same: dict[int, int] = {}
    for index, tensor in enumerate(graph.tensors):
        scale = None if tensor.quantization is None else tensor.quantization.scale
        has_scale = scale is not None and len(scale) > 0
        data = model.buffers[tensor.buffer].data
        is_constant = data is not None and len(data) > 0
        if tensor.type != schema.TensorType.INT32 or not is_constant or has_scale:
            continue
        shape = () if tensor.shape is None else tuple(int(n) for n in tensor.shape)
        tensor.name = b""
        same[index] = first.setdefault((tensor.buffer, tensor.type, shape), index)
    for op in graph.operators:
        if op.inputs is not None:
            op.inputs = [same.get(int(index), int(index)) for index in op.inputs]


def share_buffers(model: schema.ModelT) -> bool:
    """Stores equal constants of all subgraphs once, and drops buffers without a reader.

    Returns:
        Whether anything changed.
    """
    first: dict[bytes, int] = {}
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    entries = list(model.metadata or [])
    for tensor in tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            tensor.buffer = first.setdefault(bytes(data), tensor.buffer)
    # Buffer 0 is the empty one, by the format.
    listed = [
        int(index) for index in (() if model.metadataBuffer is None else model.metadataBuffer)
    ]
    used = sorted({0, *(t.buffer for t in tensors), *(e.buffer for e in entries), *listed})
    if len(used) == len(model.buffers):
        return False
    places = {old: new for new, old in enumerate(used)}
    for holder in (*tensors, *entries):
        holder.buffer = places[holder.buffer]
    if listed:
        model.metadataBuffer = [places[index] for index in listed]
    model.buffers = [model.buffers[old] for old in used]
    return True
