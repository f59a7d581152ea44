"""Entries of a file's metadata: bytes by name, which the runtime does not read."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.flatbuffer.packing import packed


def with_entry(data: bytes, name: str, content: bytes) -> bytes:
    """The file with an entry of this content, in place of one of the same name.

    Args:
        data: A `.tflite`.
        name: Name of the entry.
        content: Its bytes.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    entries = list(model.metadata or ())
    entry = next((e for e in entries if e.name == name.encode()), None)
    if entry is None:
        entry = schema.MetadataT()
        entry.name = name.encode()
        model.buffers.append(schema.BufferT())
        entry.buffer = len(model.buffers) - 1
        entries.append(entry)
    model.buffers[entry.buffer].data = np.frombuffer(content, np.uint8)
    model.metadata = entries
    return packed(model)
