"""A structural check of `.tflite` flatbuffers: every offset, vector and index lies where it may.

A flatbuffer is read through offsets that the file itself gives. A damaged or crafted file lets a
reader run out of bounds, or read the same bytes again and again. `check_tflite` goes through all
tables once; what it accepts is read in time and memory that are proportional to the file.

The options of operators are a hundred kinds of tables; of these only the bounds of the table and of
its fields are checked.
"""

from __future__ import annotations

import struct
from typing import Any

IDENTIFIER = b"TFL3"

#: Most dimensions of a tensor. LiteRT's operators take 8 at most.
_MAX_RANK = 64
#: Bytes of the file for each table. Every table has a 4-byte offset of its own, so more tables than
#: that are the same ones, referred to several times.
_BYTES_PER_TABLE = 4

_UINT16, _INT32, _UINT32, _UINT64 = (struct.Struct(f).unpack_from for f in ("<H", "<i", "<I", "<Q"))
#: Format of a number → its bytes.
_SIZES = {"b": 1, "B": 1, "i": 4, "I": 4, "f": 4, "q": 8, "Q": 8, "H": 2}

#: Table → slot in its vtable → what is there: the `struct` format of a number, "[x]" for a vector
#: of numbers, "text" for a string, "Name" for a table, "[Name]" for a vector of tables; "union" for
#: a table whose kind another field says.
_TABLES: dict[str, dict[int, str]] = {
    "Model": {
        4: "I",
        6: "[OperatorCode]",
        8: "[SubGraph]",
        10: "text",
        12: "[Buffer]",
        14: "[i]",
        16: "[Metadata]",
        18: "[SignatureDef]",
    },
    "OperatorCode": {4: "b", 6: "text", 8: "i", 10: "i"},
    "SubGraph": {4: "[Tensor]", 6: "[i]", 8: "[i]", 10: "[Operator]", 12: "text", 14: "i"},
    "Tensor": {
        4: "[i]",
        6: "b",
        8: "I",
        10: "text",
        12: "QuantizationParameters",
        14: "b",
        16: "SparsityParameters",
        18: "[i]",
        20: "b",
        22: "[VariantSubType]",
        24: "I",
    },
    "QuantizationParameters": {
        4: "[f]",
        6: "[f]",
        8: "[f]",
        10: "[q]",
        12: "B",
        14: "union",
        16: "i",
    },
    "SparsityParameters": {4: "[i]", 6: "[i]", 8: "[DimensionMetadata]"},
    "DimensionMetadata": {4: "b", 6: "i", 8: "B", 10: "union", 12: "B", 14: "union"},
    "VariantSubType": {4: "[i]", 6: "b", 8: "b"},
    "Operator": {
        4: "I",
        6: "[i]",
        8: "[i]",
        10: "B",
        12: "union",
        14: "[B]",
        16: "b",
        18: "[B]",
        20: "[i]",
        22: "Q",
        24: "Q",
        26: "B",
        28: "union",
        30: "i",
    },
    "Buffer": {4: "[B]", 6: "Q", 8: "Q"},
    "Metadata": {4: "text", 6: "I"},
    "SignatureDef": {4: "[TensorMap]", 6: "[TensorMap]", 8: "text", 12: "I"},
    "TensorMap": {4: "text", 6: "I"},
    "union": {},
}


class _Damaged(Exception):
    """What is wrong, in a few words."""


def check_tflite(data: bytes, source: str = "bytes") -> None:
    """Checks the structure of a `.tflite`.

    Args:
        data: The file.
        source: What to call it in the message.

    Raises:
        ValueError: It is no TFLite flatbuffer, or it is truncated or damaged.
    """
    if data[4:8] != IDENTIFIER:
        raise ValueError(
            f"Expected a TFLite flatbuffer (identifier b'TFL3' at byte 4). Received: {source} of "
            f"{len(data)} bytes with {data[4:8]!r} there. Pass a file that a TFLite converter wrote"
        )
    try:
        checker = _Checker(data)
        checker.check_indices(checker.table(checker.offset(0), "Model"))
    except _Damaged as damage:
        raise ValueError(
            f"Expected a whole TFLite flatbuffer. Received: {source} of {len(data)} bytes, in "
            f"which {damage}. It is truncated or damaged: export it or fetch it again"
        ) from None


class _Checker:
    """Reads tables as dicts of their fields, and counts them.

    Args:
        data: The file.
    """

    def __init__(self, data: bytes):
        self._data, self._size = data, len(data)
        self._tables_left = self._size // _BYTES_PER_TABLE
        self._external_left = self._size

    def offset(self, at: int) -> int:
        """The place that the offset at `at` refers to."""
        if at < 0 or at + 4 > self._size:
            raise _Damaged("an offset lies beyond the end")
        return at + _UINT32(self._data, at)[0]

    def table(self, at: int, kind: str) -> dict[int, Any]:
        """Slot → number, `(place, length)` of a vector of numbers or a string, dict, or dicts."""
        self._tables_left -= 1
        if self._tables_left < 0:
            raise _Damaged("more tables are referred to than it can hold")
        data, size = self._data, self._size
        if at < 0 or at + 4 > size:
            raise _Damaged(f"a table ({kind}) lies beyond the end")
        vtable = at - _INT32(data, at)[0]
        if vtable < 0 or vtable + 4 > size:
            raise _Damaged(f"the fields of a table ({kind}) lie beyond the end")
        length, extent = _UINT16(data, vtable)[0], _UINT16(data, vtable + 2)[0]
        if length < 4 or length % 2 or vtable + length > size or extent < 4 or at + extent > size:
            raise _Damaged(f"a table ({kind}) is longer than the file")
        found = {}
        fields = _TABLES[kind]
        for slot in range(4, length, 2):
            place = _UINT16(data, vtable + slot)[0]
            if place == 0:
                continue
            what = fields.get(slot)
            if place < 4 or place + _SIZES.get(what or "b", 4) > extent:
                raise _Damaged(f"a field of a table ({kind}) lies outside of it")
            if what is not None:
                found[slot] = self._field(at + place, what)
        if kind == "Buffer":
            self._check_external(found)
        return found

    def _field(self, at: int, what: str) -> Any:
        if what in _SIZES:
            return struct.unpack_from("<" + what, self._data, at)[0]
        place = self.offset(at)
        if what == "text":
            return place, self._length(place, 1)
        if what[0] != "[":
            return self.table(place, what)
        inner = what[1:-1]
        if inner in _SIZES:
            return place, self._length(place, _SIZES[inner])
        count = self._length(place, 4)
        return [self.table(self.offset(place + 4 + 4 * i), inner) for i in range(count)]

    def _length(self, at: int, width: int) -> int:
        if at + 4 > self._size:
            raise _Damaged("a vector lies beyond the end")
        count = _UINT32(self._data, at)[0]
        if at + 4 + count * width > self._size:
            raise _Damaged("a vector is longer than the file")
        return count

    def _check_external(self, buffer: dict[int, Any]) -> None:
        """Values behind the flatbuffer, as in files beyond 2 GB."""
        start, size = buffer.get(6, 0), buffer.get(8, 0)
        if not start and not size:
            return
        self._external_left -= size
        if start + size > self._size or self._external_left < 0:
            raise _Damaged("the values of a tensor lie beyond the end")

    def numbers(self, vector: tuple[int, int] | None) -> tuple[int, ...]:
        """The int32 of a vector that `table` has found."""
        if vector is None:
            return ()
        return struct.unpack_from(f"<{vector[1]}i", self._data, vector[0] + 4)

    # --- indices ---------------------------------------------------------------------------------

    def check_indices(self, model: dict[int, Any]) -> None:
        """Checks that tables refer to entries that are there."""
        codes, graphs, buffers = (model.get(slot, []) for slot in (6, 8, 12))
        if not graphs:
            raise _Damaged("there is no graph")
        for graph in graphs:
            self._check_graph(graph, len(codes), len(buffers))
        for entry in model.get(16, []):
            _check_index(entry.get(6, 0), len(buffers), "metadata refer to a buffer")
        for index in self.numbers(model.get(14)):
            _check_index(index, len(buffers), "metadata refer to a buffer")
        for signature in model.get(18, []):
            graph_index = signature.get(12, 0)
            _check_index(graph_index, len(graphs), "a signature refers to a graph")
            count = len(graphs[graph_index].get(4, []))
            for entry in (*signature.get(4, []), *signature.get(6, [])):
                _check_index(entry.get(6, 0), count, "a signature refers to a tensor")

    def _check_graph(self, graph: dict[int, Any], num_codes: int, num_buffers: int) -> None:
        tensors = graph.get(4, [])
        for tensor in tensors:
            _check_index(tensor.get(8, 0), num_buffers, "a tensor refers to a buffer")
            self._check_tensor(tensor)
        for slot in (6, 8):
            for index in self.numbers(graph.get(slot)):
                _check_index(index, len(tensors), "a graph refers to a tensor")
        for op in graph.get(10, []):
            _check_index(op.get(4, 0), num_codes, "an operator refers to a code")
            for slot in (6, 8, 20):
                for index in self.numbers(op.get(slot)):
                    # Inputs may be left out; an output never is.
                    if index != -1 or slot == 8:
                        _check_index(index, len(tensors), "an operator refers to a tensor")

    def _check_tensor(self, tensor: dict[int, Any]) -> None:
        shape, signature = (self.numbers(tensor.get(slot)) for slot in (4, 18))
        if max(len(shape), len(signature)) > _MAX_RANK:
            raise _Damaged(f"a tensor has more than {_MAX_RANK} dimensions")
        if any(n < 0 for n in shape) or any(n < -1 for n in signature):
            raise _Damaged("a tensor has a negative size")
        quantization = tensor.get(12, {})
        scales, zeros = (quantization.get(slot, (0, 0))[1] for slot in (8, 10))
        if zeros not in (0, scales):
            raise _Damaged("a tensor has other numbers of scales and of zero points")
        axis = quantization.get(16, 0)
        if scales > 1 and not 0 <= axis < max(len(shape), 1):
            raise _Damaged("a tensor has scales along a dimension that it has not")


def _check_index(index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise _Damaged(f"{what} that is not there")
