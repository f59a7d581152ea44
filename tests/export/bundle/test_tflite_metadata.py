"""TFLite metadata, read through the offsets of its schema and as the archive that it is."""

import io
import struct
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.bundle.tflite_metadata import ENTRY
from tfcompress.files.input_codes import metadata_entry


class Table:
    """A flatbuffer table, by the numbers of its fields in the schema."""

    def __init__(self, data, position):
        self.data, self.position = data, position

    @classmethod
    def root(cls, data):
        return cls(data, struct.unpack_from("<I", data)[0])

    def _at(self, field):
        table = self.position - struct.unpack_from("<i", self.data, self.position)[0]
        size = struct.unpack_from("<H", self.data, table)[0]
        place = 4 + 2 * field
        offset = struct.unpack_from("<H", self.data, table + place)[0] if place < size else 0
        return self.position + offset if offset else None

    def _referred(self, position):
        return position + struct.unpack_from("<I", self.data, position)[0]

    def number(self, field, kind):
        position = self._at(field)
        return 0 if position is None else struct.unpack_from(f"<{kind}", self.data, position)[0]

    def table(self, field):
        return Table(self.data, self._referred(self._at(field)))

    def _vector(self, field):
        position = self._referred(self._at(field))
        return position + 4, struct.unpack_from("<I", self.data, position)[0]

    def text(self, field):
        start, size = self._vector(field)
        return self.data[start : start + size].decode()

    def tables(self, field):
        start, size = self._vector(field)
        return [Table(self.data, self._referred(start + 4 * i)) for i in range(size)]

    def floats(self, field):
        start, size = self._vector(field)
        return struct.unpack_from(f"<{size}f", self.data, start)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 6, 3)).astype("float32")
    image = keras.Input((8, 6, 3), name="image")
    x = layers.Conv2D(4, 3)(layers.Rescaling(1 / 127.5, -1)(image))
    model = keras.Model(image, layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x)))
    path = tmp_path_factory.mktemp("file") / "flowers.tflite"
    types = {"input_type": "uint8", "output_type": "uint8"}
    model = tfc.quantize(model, calibration_data=pixels)
    report = tfc.export_tflite(model, path, labels=["daisy", "rose", "tulip"], **types)
    assert report.agreement == 1
    assert not [note for note in report.input_notes if "MediaPipe" in note]
    return path


def test_normalization_colours_and_labels(path):
    content = metadata_entry(path.read_bytes(), ENTRY)
    assert content[4:8] == b"M001"
    root = Table.root(content)
    assert (root.text(0), root.text(7)) == ("flowers", "1.0.0")
    (subgraph,) = root.tables(3)
    (image,), (scores,) = subgraph.tables(2), subgraph.tables(3)
    assert (image.text(0), scores.text(0)) == ("image", "scores")
    # ImageProperties: RGB, and the width before the height.
    assert image.table(3).number(0, "B") == 2
    properties = image.table(3).table(1)
    size = properties.table(1)
    assert (properties.number(0, "b"), size.number(0, "I"), size.number(1, "I")) == (1, 6, 8)
    (unit,) = image.tables(4)
    assert unit.number(0, "B") == 1
    # The codes are pixels: pixel − 128 steps of 1 / 127.5.
    assert unit.table(1).floats(0) == pytest.approx([128.0])
    assert unit.table(1).floats(1) == pytest.approx([127.5])
    (labels,) = scores.tables(6)
    assert (labels.text(0), labels.number(2, "b")) == ("labels.txt", 2)


def test_the_file_is_an_archive_and_still_a_model(path):
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().splitlines() == ["daisy", "rose", "tulip"]
    assert tfc.inspect_tflite(path).num_bytes == path.stat().st_size
    scores = tfc.Runner(path).predict(np.zeros((1, 8, 6, 3), np.float32))["scores"]
    assert scores.shape == (1, 3)


def test_a_reader_that_feeds_bytes_is_warned_of(tmp_path):
    data = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype("float32")
    image = keras.Input((4, 4, 3), name="image")
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(image)))
    options = {"calibration_data": data, "labels": ["a", "b"], "input_type": "uint8"}
    report = tfc.export_tflite(model, tmp_path / "m.tflite", **options)
    assert any("MediaPipe feeds 'image'" in note for note in report.input_notes)
