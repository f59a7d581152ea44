"""Files that are whole or absent, alone or as a set."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import BinaryIO

#: How the folders begin in which files are staged beside their targets.
STAGING_PREFIX = ".tfcompress-"

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


#: What a file is written from: bytes, text (as UTF-8), or a function that writes to an open file.
Content = bytes | str | Callable[[BinaryIO], object]


def write_atomically(path: str | os.PathLike, data: Content) -> pathlib.Path:
    """Writes `data` so that `path` holds all of it, or what it held before.

    Args:
        path: The file to write; its folder must exist.
        data: Bytes, text that is written as UTF-8, or a function that writes to the open file.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        TypeError: If `data` is something else.
        ValueError: If the folder does not exist or cannot be written, or `path` is a folder.
        OSError: If the disk is full, or fails.
    """
    path = pathlib.Path(path)
    write_together({path: data})
    return path


def write_together(
    files: Mapping[pathlib.Path, Content], remove: Iterable[pathlib.Path] = ()
) -> None:
    """Writes several files so that all are new, or all are as they were.

    All bytes go to a temporary folder beside the targets (a rename is atomic only within one file
    system). Then they replace the targets one after the other, in order; where one fails, those
    before it are put back. The temporary folder is removed in any case, also when SIGTERM ends the
    process. Two processes that write into one folder take turns. What a reader sees between two
    renames, or after SIGKILL there, it can tell by a checksum.

    Args:
        files: Path → bytes, text that is written as UTF-8, or a function that writes to the open
            file. The folders must exist. A link stays a link: what it points to is replaced.
        remove: Files that are removed with it, where they exist.

    Raises:
        TypeError: If some content is something else.
        ValueError: If a folder does not exist or cannot be written, or a path is a folder.
        OSError: If the disk is full, or fails.
    """
    contents = {}
    for path, data in files.items():
        if not (isinstance(data, bytes | bytearray | memoryview | str) or callable(data)):
            raise TypeError(f"Expected bytes or str to write. Received: data of {type(data)}")
        contents[_target(path)] = (path, data.encode("utf-8") if isinstance(data, str) else data)
    removed = [pathlib.Path(os.path.realpath(path)) for path in remove]
    folders = sorted({target.parent for target in (*contents, *removed)})
    with _sigterm_raises():
        stages: dict[pathlib.Path, pathlib.Path] = {}
        current = next(iter(files), folders[0])
        try:
            for folder in folders:
                stages[folder] = pathlib.Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=folder))
            staged = {}
            for number, (target, (path, data)) in enumerate(contents.items()):
                current = path
                # Not by `tempfile`, whose files ignore the umask and stay private.
                staged[target] = stages[target.parent] / f"{number}.new"
                with open(staged[target], "xb") as file:
                    if callable(data):
                        data(file)
                    else:
                        file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            with contextlib.ExitStack() as locks:
                for folder in folders:
                    locks.enter_context(_locked(folder))
                _replace_all(staged, [target for target in removed if target.exists()], stages)
        except OSError as error:
            raise _explained(error, current) from error
        finally:
            for stage in stages.values():
                shutil.rmtree(stage, ignore_errors=True)


def check_writable(path: str | os.PathLike, names: Iterable[str] = ()) -> None:
    """Refuses, before the work, a path that could not be written after it.

    Args:
        path: The file that will be written.
        names: Names of further files that will be written beside it.

    Raises:
        ValueError: The folder does not exist or cannot be written, one of the paths is a folder, or
            a name is too long for the file system.
    """
    target, names = _target(pathlib.Path(path)), tuple(names)
    longest = None
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Not on every platform.
        longest = os.pathconf(target.parent, "PC_NAME_MAX")
    for name in (target.name, *names):
        size = len(os.fsencode(name))
        if longest is not None and size > longest:
            raise ValueError(
                f"Expected file names of at most {longest} bytes in {str(target.parent)!r}. "
                f"Received: {name!r} of {size}. Choose a shorter name"
            )
    for name in names:
        _target(pathlib.Path(path).parent / name)
    try:
        os.rmdir(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=target.parent))
    except OSError as error:
        raise _explained(error, pathlib.Path(path)) from error


def make_temporary_folder() -> pathlib.Path:
    """Makes a folder for temporary files, where `tempfile` makes them (`TMPDIR`).

    Raises:
        ValueError: There is no folder for temporary files that can be written.
    """
    try:
        return pathlib.Path(tempfile.mkdtemp(prefix="tfcompress-"))
    except OSError as error:
        named = tempfile.tempdir or os.environ.get("TMPDIR")
        raise ValueError(
            "Expected a folder for temporary files that exists and can be written. Received: "
            f"{str(named)!r} ({error.strerror or error}). Set the environment variable TMPDIR to "
            "such a folder, and start again"
        ) from error


class _Terminated(BaseException):
    """SIGTERM has arrived."""


def _target(path: pathlib.Path) -> pathlib.Path:
    target = pathlib.Path(os.path.realpath(path))
    if target.is_dir():
        raise ValueError(f"Expected the path of a file. Received: {str(path)!r}, which is a folder")
    if not target.parent.is_dir():
        raise ValueError(
            f"Expected a file inside an existing folder. Received: path={str(path)!r}, but there "
            f"is no folder {str(target.parent)!r}. Create it first"
        )
    return target


def _replace_all(
    staged: Mapping[pathlib.Path, pathlib.Path],
    removed: Iterable[pathlib.Path],
    stages: Mapping[pathlib.Path, pathlib.Path],
) -> None:
    """Moves staged files to their targets; where that fails, puts back what was there."""
    done: list[tuple[pathlib.Path, pathlib.Path | None]] = []
    try:
        for target, new in staged.items():
            old = None
            if target.exists():
                old = new.with_suffix(".old")
                try:
                    os.link(target, old)
                except OSError:  # No links on this file system.
                    shutil.copy2(target, old)
            done.append((target, old))
            os.replace(new, target)
        for number, target in enumerate(removed):
            old = stages[target.parent] / f"{number}.removed"
            done.append((target, old))
            os.replace(target, old)
    except BaseException:
        for target, old in reversed(done):
            if old is None:
                target.unlink(missing_ok=True)
            elif old.exists():
                os.rename(old, target)
        raise


def _explained(error: OSError, path: pathlib.Path) -> Exception:
    """The same failure, with what to do about it."""
    folder = str(pathlib.Path(os.path.realpath(path)).parent)
    what = error.strerror or str(error)
    if error.errno in _NO_PERMISSION:
        return ValueError(
            f"Expected a folder that can be written. Received: path={str(path)!r} in {folder!r} "
            f"({what}). Change its permissions or choose another folder"
        )
    if error.errno == errno.ENAMETOOLONG:
        return ValueError(f"Expected a shorter name. Received: path={str(path)!r} ({what})")
    remedy = "Free some space there or choose another folder" if error.errno in _NO_SPACE else ""
    return OSError(
        error.errno,
        f"Expected to write {str(path)!r} in {folder!r}. Received: {what}. "
        f"What was there before is unchanged. {remedy}".rstrip(),
    )


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds a lock on a folder, where the platform has one: it leaves no file behind."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Lets `finally` run where SIGTERM would end the process at once; then it ends the process."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
