"""The oldest runtime that reads a file right, written into the file."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.export.flatbuffer.int8_ops import (
    CAST_RUNTIME,
    CAST_VERSION,
    INT8_RUNTIME,
    INT16_RUNTIME,
    LOOKUP_OPS,
    PACKED_RUNTIMES,
    TABLE_RUNTIME,
)

_OPERATOR, _TYPE = schema.BuiltinOperator, schema.TensorType


def require_runtime(model: schema.ModelT) -> None:
    """An older runtime must refuse the file rather than misread it."""
    types = {tensor.type for graph in model.subgraphs for tensor in graph.tensors}
    needed = [INT16_RUNTIME if _TYPE.INT16 in types else INT8_RUNTIME]
    needed += [*(r for dtype, r in PACKED_RUNTIMES.items() if dtype in types)]
    codes = {max(e.builtinCode, e.deprecatedBuiltinCode) for e in model.operatorCodes}
    casts = [e for e in model.operatorCodes if e.builtinCode == _OPERATOR.CAST]
    if any(e.version >= CAST_VERSION for e in casts):
        needed.append(CAST_RUNTIME)
    if codes & LOOKUP_OPS:
        needed.append(TABLE_RUNTIME)
    for entry in model.metadata or ():
        if entry.name == b"min_runtime_version":
            given = bytes(model.buffers[entry.buffer].data).rstrip(b"\0").decode()
            text = max(given, *needed, key=_version).encode().ljust(16, b"\0")
            model.buffers[entry.buffer].data = np.frombuffer(text, np.uint8)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
