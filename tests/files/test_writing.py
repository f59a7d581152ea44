"""Sets of files that are whole or as they were, whatever fails."""

import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading

import pytest

from tests.files.light import LIGHT_IMPORT
from tfcompress.files import writing


def content(folder):
    """Name → bytes of every entry of a folder, hidden ones included."""
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


@pytest.fixture
def old(tmp_path):
    """A folder with an earlier set in it."""
    for name in ("model.tflite", "model.json", "model.golden.json"):
        (tmp_path / name).write_text(f"old {name}")
    return content(tmp_path)


def new_set(folder):
    return {folder / "model.tflite": b"new" * 1000, folder / "model.json": "new"}


def test_writes_bytes_and_text(tmp_path):
    path = writing.write_atomically(tmp_path / "a.bin", b"\0\1\2")
    assert path.read_bytes() == b"\0\1\2"
    writing.write_atomically(path, lambda file: file.write(b"by a function"))
    assert path.read_bytes() == b"by a function"
    writing.write_atomically(path, "naïve\n")
    assert content(tmp_path) == {"a.bin": "naïve\n".encode()}


def test_a_set_replaces_and_removes_together(tmp_path, old):
    writing.write_together(new_set(tmp_path), [tmp_path / "model.golden.json", tmp_path / "none"])
    assert content(tmp_path) == {"model.tflite": b"new" * 1000, "model.json": b"new"}


def test_a_full_disk_changes_nothing(tmp_path, old):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(
            OSError, match=r"write .*model.tflite.*File too large.*unchanged. Free some"
        ):
            writing.write_together(new_set(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert content(tmp_path) == old


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_failure_between_two_renames_puts_all_back(tmp_path, old, monkeypatch, error, at):
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(target)
        if len(calls) == at:
            raise error
        replace(source, target)

    monkeypatch.setattr(writing.os, "replace", fail)
    with pytest.raises(type(error)):
        writing.write_together(new_set(tmp_path), [tmp_path / "model.golden.json"])
    assert content(tmp_path) == old


def test_a_failure_leaves_no_file_where_there_was_none(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left.*unchanged"):
        writing.write_together(new_set(tmp_path))
    assert content(tmp_path) == {}


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "target.bin").write_bytes(b"old")
    link = tmp_path / "link.bin"
    link.symlink_to(tmp_path / "real" / "target.bin")
    writing.write_together({link: b"new", tmp_path / "other": b"new"})
    assert link.is_symlink()
    assert (tmp_path / "real" / "target.bin").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["link.bin", "other", "real"]


def test_permissions_follow_the_umask(tmp_path):
    umask = os.umask(0o022)
    try:
        path = writing.write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_folder_that_refuses_is_named(tmp_path, monkeypatch):
    # Tests may run as root, whom no permission stops.
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(writing.os, "replace", refuse)
    with pytest.raises(ValueError, match=rf"can be written.*'{tmp_path}'.*Permission denied"):
        writing.write_atomically(tmp_path / "a", b"")
    assert content(tmp_path) == {}


def test_wrong_paths_and_contents(tmp_path):
    with pytest.raises(ValueError, match=r"no folder '.*nowhere'. Create it"):
        writing.write_atomically(tmp_path / "nowhere" / "a", b"")
    with pytest.raises(ValueError, match="is a folder"):
        writing.write_atomically(tmp_path, b"")
    with pytest.raises(TypeError, match="Expected bytes or str"):
        writing.write_atomically(tmp_path / "a", [1, 2])
    assert content(tmp_path) == {}


def test_two_writers_of_one_set_never_mix(tmp_path):
    def write(who):
        for turn in range(30):
            files = {tmp_path / name: f"{who}{turn}" for name in "abc"}
            writing.write_together(files)

    writers = [threading.Thread(target=write, args=(who,)) for who in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(set(content(tmp_path).values())) == 1
    assert sorted(content(tmp_path)) == ["a", "b", "c"]


def test_sigterm_while_files_are_written_leaves_the_old_set(tmp_path, old):
    script = f"""
{LIGHT_IMPORT}
import os, pathlib, time
from tfcompress.files import writing
def slow(descriptor):
    print("writing", flush=True)
    time.sleep(60)
writing.os.fsync = slow
writing.write_together({{pathlib.Path({str(tmp_path)!r}) / "model.tflite": b"new"}})
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.terminate()
    assert process.wait(timeout=30) == -signal.SIGTERM
    process.stdout.close()
    assert content(tmp_path) == old


def test_what_cannot_be_written_is_said_before(tmp_path, monkeypatch):
    writing.check_writable(tmp_path / "a.tflite", ["a.json"])
    with pytest.raises(ValueError, match=r"names of at most 255 bytes.*of 257. Choose a shorter"):
        writing.check_writable(tmp_path / ("n" * 245 + ".tflite"), ["n" * 245 + ".golden.json"])
    with pytest.raises(ValueError, match="no folder"):
        writing.check_writable(tmp_path / "nowhere" / "a.tflite")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(ValueError, match=r"path of a file. Received: '.*b.json', which is a fold"):
        writing.check_writable(tmp_path / "b.tflite", ["b.json"])
    (tmp_path / "b.json").rmdir()
    # A read-only file system, say.
    monkeypatch.setattr(
        writing.tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(OSError(30, "Read-only"))
    )
    with pytest.raises(ValueError, match=r"folder that can be written.*Read-only"):
        writing.check_writable(tmp_path / "a.tflite")
    assert content(tmp_path) == {}


def test_a_missing_temporary_folder_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"Received: '.*gone' \(No such file.*Set .* TMPDIR"):
        writing.make_temporary_folder()
