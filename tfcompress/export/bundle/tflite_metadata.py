"""TFLite metadata: what MediaPipe Tasks reads in a `.tflite` to classify pictures with it.

A buffer of the file, `TFLITE_METADATA`, holds a flatbuffer of the schema `metadata_schema.fbs` of
MediaPipe (identifier `M001`): how inputs are normalized, which colours they have, and the name of
the file with the labels. That file is in a ZIP archive which is appended to the `.tflite`; LiteRT
reads neither.

The fields are written by their places in the schema, for no package that is kept up can write them.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence

import flatbuffers

from tfcompress.export.flatbuffer.metadata_entries import with_entry

#: Name of the buffer.
ENTRY = "TFLITE_METADATA"
#: Name of the labels in the archive.
LABELS_FILE = "labels.txt"

_IDENTIFIER = b"M001"
# The oldest parser that knows the fields that are written.
_PARSER_VERSION = "1.0.0"
# `ContentProperties`, `ProcessUnitOptions` and `AssociatedFileType` of the schema.
_FEATURES, _IMAGE = 1, 2
_NORMALIZATION = 1
_AXIS_LABELS = 2
_COLORS = {3: 1, 1: 2}


@dataclasses.dataclass(frozen=True)
class InputDescription:
    """An input of the file.

    Attributes:
        name: Its name.
        shape: Its shape, with the batch of 1.
        mean: Of the normalization (x − mean) / deviation from raw values to the file's real values;
            `None` where it is not known.
        deviation: Likewise.
    """

    name: str
    shape: tuple[int, ...]
    mean: Sequence[float] | None = None
    deviation: Sequence[float] | None = None

    @property
    def is_image(self) -> bool:
        """Whether it has the shape of a picture: height, width and one or three channels."""
        return len(self.shape) == 4 and self.shape[-1] in _COLORS


def with_tflite_metadata(
    data: bytes,
    name: str,
    inputs: Sequence[InputDescription],
    outputs: Sequence[str],
    labels: Mapping[str, Sequence[str]],
) -> bytes:
    """The file with TFLite metadata and with its labels appended.

    Args:
        data: A `.tflite` with one subgraph, and without an archive.
        name: Name of the model.
        inputs: Its inputs, in the order of the file.
        outputs: Names of its outputs, likewise.
        labels: Output → its class names; at most one output has some.
    """
    given = next(iter(labels.values()), None)
    data = with_entry(data, ENTRY, _content(name, inputs, outputs, set(labels)))
    if given is None:
        return data
    archive = io.BytesIO()
    archive.write(data)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_STORED) as file:
        # A fixed time: the same model is the same file.
        file.writestr(zipfile.ZipInfo(LABELS_FILE), "\n".join(given) + "\n")
    return archive.getvalue()


class _Writer:
    """Tables of a flatbuffer, by slot."""

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(1024)

    def text(self, value: str) -> int:
        return self.builder.CreateString(value)

    def tables(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return self.builder.EndVector()

    def floats(self, values: Sequence[float]) -> int:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependFloat32(value)
        return self.builder.EndVector()

    def table(
        self,
        slots: int,
        offsets: Mapping[int, int],
        bytes_: Mapping[int, int] | None = None,
        numbers: Mapping[int, int] | None = None,
    ) -> int:
        """A table: slot → offset of what it refers to, slot → byte, slot → unsigned number."""
        builder = self.builder
        builder.StartObject(slots)
        add: Callable[..., None] = builder.PrependUOffsetTRelativeSlot
        for slot, offset in offsets.items():
            add(slot, offset, 0)
        for slot, value in (numbers or {}).items():
            builder.PrependUint32Slot(slot, value, 0)
        for slot, value in (bytes_ or {}).items():
            builder.PrependInt8Slot(slot, value, 0)
        return builder.EndObject()


def _content(
    name: str, inputs: Sequence[InputDescription], outputs: Sequence[str], labelled: set[str]
) -> bytes:
    """The flatbuffer."""
    w = _Writer()
    given = w.tables([_input(w, each) for each in inputs])
    gives = w.tables([_output(w, each, each in labelled) for each in outputs])
    subgraphs = w.tables([w.table(10, {2: given, 3: gives})])
    parser = w.text(_PARSER_VERSION)
    root = w.table(8, {0: w.text(name), 3: subgraphs, 7: parser})
    w.builder.Finish(root, file_identifier=_IDENTIFIER)
    return bytes(w.builder.Output())


def _input(w: _Writer, given: InputDescription) -> int:
    if given.is_image:
        _, height, width, channels = given.shape
        size = w.table(2, {}, numbers={0: width, 1: height})
        properties = w.table(2, {1: size}, {0: _COLORS[channels]})
        content = w.table(3, {1: properties}, {0: _IMAGE})
    else:
        content = w.table(3, {1: w.table(0, {})}, {0: _FEATURES})
    fields = {3: content}
    if given.mean is not None and given.deviation is not None:
        mean, deviation = w.floats(given.mean), w.floats(given.deviation)
        options = w.table(2, {0: mean, 1: deviation})
        fields[4] = w.tables([w.table(2, {1: options}, {0: _NORMALIZATION})])
    return w.table(7, {0: w.text(given.name), **fields})


def _output(w: _Writer, name: str, is_labelled: bool) -> int:
    content = w.table(3, {1: w.table(0, {})}, {0: _FEATURES})
    fields = {3: content}
    if is_labelled:
        file = w.table(5, {0: w.text(LABELS_FILE)}, {2: _AXIS_LABELS})
        fields[6] = w.tables([file])
    return w.table(7, {0: w.text(name), **fields})
