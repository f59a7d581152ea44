import gzip
import hashlib
import os
import stat

import numpy as np
import pytest

from tfcompress.export import files


def test_writes_bytes_and_text(tmp_path):
    path = files.write_atomically(tmp_path / "a.bin", b"\0\1\2")
    assert path.read_bytes() == b"\0\1\2"
    files.write_atomically(path, "naïve\n")
    assert path.read_bytes() == "naïve\n".encode()
    assert os.listdir(tmp_path) == ["a.bin"]


def test_the_old_content_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.tflite"]


def test_a_link_stays_a_link(tmp_path):
    target = tmp_path / "target.bin"
    target.write_bytes(b"old")
    link = tmp_path / "link.bin"
    link.symlink_to(target)
    files.write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_permissions_follow_the_umask(tmp_path):
    umask = os.umask(0o022)
    try:
        path = files.write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no folder '.*nowhere'. Create it"):
        files.write_atomically(tmp_path / "nowhere" / "a", b"")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_refuses_is_named(tmp_path, monkeypatch):
    # Tests may run as root, whom no permission stops.
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(ValueError, match=rf"can be written.*'{tmp_path}'.*Permission denied"):
        files.write_atomically(tmp_path / "a", b"")
    assert os.listdir(tmp_path) == []


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        files.write_atomically(tmp_path, b"")


def test_only_bytes_and_text(tmp_path):
    with pytest.raises(TypeError, match="Expected bytes or str"):
        files.write_atomically(tmp_path / "a", [1, 2])
    assert os.listdir(tmp_path) == []


def test_gzip_size_is_that_of_a_whole_deterministic_stream():
    data = np.random.default_rng(0).integers(0, 4, 10_000, np.uint8).tobytes()
    stream = gzip.compress(data, 9, mtime=0)
    assert files.gzip_size(data) == len(stream)
    # Two bits of entropy per byte, give or take the format's overhead.
    assert 0.25 < files.gzip_size(data) / len(data) < 0.33


def test_sha256():
    assert files.sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_read_tflite_takes_paths_and_bytes(int8_file, tmp_path):
    path = files.write_atomically(tmp_path / "a.tflite", int8_file)
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
