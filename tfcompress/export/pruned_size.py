"""What pruning saves of a download: the gzip size of the file as if it had no zero weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.files import gzip_size
from tfcompress.export.flatbuffer.constants import pack
from tfcompress.export.flatbuffer.packing import packed


def dense_gzip_size(data: bytes) -> int:
    """Bytes of the file under gzip if its zero weights were distributed like the others.

    The zeros of every kernel of codes are drawn anew from its other codes, those of a float kernel
    from the normal distribution of its other values, with a fixed seed.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    random = np.random.default_rng(0)
    filled = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            raw = model.buffers[tensor.buffer].data
            is_kernel = tensor.type in _VALUES and len(tensor.shape) > 1
            if raw is None or not is_kernel or tensor.buffer in filled:
                continue
            filled.add(tensor.buffer)
            read, written = _VALUES[tensor.type]
            values = read(bytes(raw))
            zeros, others = values == 0, values[values != 0]
            if others.size:
                values[zeros] = _alike(others, int(zeros.sum()), random)
                model.buffers[tensor.buffer].data = np.frombuffer(written(values), np.uint8)
    return gzip_size(packed(model))


def _alike(others: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    if others.dtype == np.float32:
        # Floats drawn from a few values would repeat their four bytes, which compress well.
        return random.normal(others.mean(), others.std(), count).astype(np.float32)
    return random.choice(others, count)


def _packed(bits: int) -> tuple[Callable[[bytes], np.ndarray], Callable[[np.ndarray], bytes]]:
    """Of codes of 4 or 2 bits, several to a byte; padding counts as codes."""

    def read(raw: bytes) -> np.ndarray:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return ((np.frombuffer(raw, np.uint8)[:, None] >> shifts) & (2**bits - 1)).reshape(-1)

    return read, lambda codes: pack(codes, bits).tobytes()


#: Type of tensor → (bytes → values, values → bytes).
_VALUES: dict[int, tuple[Callable[[bytes], np.ndarray], Callable[[np.ndarray], bytes]]] = {
    schema.TensorType.INT8: (lambda raw: np.frombuffer(raw, np.int8).copy(), np.ndarray.tobytes),
    schema.TensorType.INT4: _packed(4),
    schema.TensorType.INT2: _packed(2),
    schema.TensorType.FLOAT32: (
        lambda raw: np.frombuffer(raw, np.float32).copy(),
        np.ndarray.tobytes,
    ),
}
