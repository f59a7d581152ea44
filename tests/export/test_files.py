import gzip
import hashlib

import numpy as np
import pytest

from tfcompress.export import files


def test_gzip_size_is_that_of_a_whole_deterministic_stream():
    data = np.random.default_rng(0).integers(0, 4, 10_000, np.uint8).tobytes()
    stream = gzip.compress(data, 9, mtime=0)
    assert files.gzip_size(data) == len(stream)
    # Two bits of entropy per byte, give or take the format's overhead.
    assert 0.25 < files.gzip_size(data) / len(data) < 0.33


def test_sha256():
    assert files.sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_read_tflite_takes_paths_and_bytes(int8_file, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(int8_file)
    for argument in (path, str(path), int8_file, bytearray(int8_file), memoryview(int8_file)):
        assert files.read_tflite(argument) == int8_file


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\3\4 a zipped .keras"])
def test_read_tflite_refuses_other_files(content, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"TFLite flatbuffer.*a\.tflite' of {len(content)} bytes"):
        files.read_tflite(path)


def test_read_tflite_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"Received: '.*b\.tflite', which does not exist"):
        files.read_tflite(tmp_path / "b.tflite")
    with pytest.raises(ValueError, match="which is a folder"):
        files.read_tflite(tmp_path)
    with pytest.raises(TypeError, match="Received: None"):
        files.read_tflite(None)
