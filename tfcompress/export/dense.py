"""What pruning saved of a download: the file against itself without its zeros."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.files import gzip_size


def dense_gzip_size(data: bytes) -> int:
    """Bytes under gzip of the file if every zero weight were like the others of its kernel.

    The zeros of every int8 kernel are drawn anew from its other codes, with a fixed seed.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    random = np.random.default_rng(0)
    filled = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            raw = model.buffers[tensor.buffer].data
            is_kernel = tensor.type == schema.TensorType.INT8 and len(tensor.shape) > 1
            if raw is None or not is_kernel or tensor.buffer in filled:
                continue
            filled.add(tensor.buffer)
            codes = np.frombuffer(bytes(raw), np.int8).copy()
            zeros, others = codes == 0, codes[codes != 0]
            if others.size:
                codes[zeros] = random.choice(others, zeros.sum())
                model.buffers[tensor.buffer].data = codes.view(np.uint8)
    return gzip_size(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
