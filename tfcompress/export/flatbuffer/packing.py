"""From a flatbuffer's object tree to its bytes, with equal vectors of numbers stored once."""

from __future__ import annotations

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

_IDENTIFIER = b"TFL3"


class _SharingBuilder(flatbuffers.Builder):
    """Refers to a vector that was written before, where the next one has the same bytes."""

    def __init__(self) -> None:
        super().__init__(1024)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]


def packed(model: schema.ModelT) -> bytes:
    """The bytes of a file.

    Every kernel with a scale per channel, and every bias, has a vector of 8-byte zero points that
    are all 0: one of each length is enough. In a net of many channels that is a tenth of the file.

    Args:
        model: The object tree.
    """
    builder = _SharingBuilder()
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def packed_again(data: bytes) -> bytes:
    """The same file with equal vectors stored once."""
    return packed(flatbuffer_utils.convert_bytearray_to_object(bytearray(data)))
