"""Files that are whole or absent, and what is measured on their bytes."""

from __future__ import annotations

import gzip
import hashlib
import os
import pathlib
import secrets

PathOrBytes = str | os.PathLike | bytes | bytearray | memoryview

_TFLITE_IDENTIFIER = b"TFL3"


def write_atomically(path: str | os.PathLike, data: bytes | str) -> pathlib.Path:
    """Writes `data` so that `path` holds all of it, or what it held before.

    The bytes go to a temporary file in the same folder (a rename is atomic only within one file
    system), which then replaces `path`. On any failure the temporary file is removed.

    Args:
        path: The file to write; its folder must exist.
        data: Bytes, or text that is written as UTF-8.

    Returns:
        `path` as a `pathlib.Path`.

    Raises:
        TypeError: If `data` is neither bytes nor str.
        ValueError: If the folder does not exist or cannot be written, or `path` is a folder.
    """
    if isinstance(data, str):
        data = data.encode("utf-8")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"Expected bytes or str to write. Received: data of {type(data)}")
    path = pathlib.Path(path)
    # A link stays a link: what it points to is replaced.
    target = pathlib.Path(os.path.realpath(path))
    if target.is_dir():
        raise ValueError(f"Expected the path of a file. Received: {str(path)!r}, which is a folder")
    folder = target.parent
    if not folder.is_dir():
        raise ValueError(
            f"Expected a file inside an existing folder. Received: path={str(path)!r}, but there "
            f"is no folder {str(folder)!r}. Create it first"
        )
    # Not by `tempfile`, whose files ignore the umask and stay private.
    temporary = folder / f".{target.name}.{secrets.token_hex(6)}.part"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except PermissionError as error:
        raise ValueError(
            f"Expected a folder that can be written. Received: path={str(path)!r} in "
            f"{str(folder)!r} ({error.strerror}). Change its permissions or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def gzip_size(data: bytes) -> int:
    """Returns the bytes of `data` under gzip at level 9: about what a phone downloads.

    The header carries no time stamp, so equal data have equal sizes.
    """
    return len(gzip.compress(bytes(data), compresslevel=9, mtime=0))


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_tflite(path_or_bytes: PathOrBytes) -> bytes:
    """Returns the bytes of a `.tflite`, given its path or the bytes themselves.

    Raises:
        TypeError: If the argument is neither a path nor bytes.
        ValueError: If there is no such file, or the bytes are not a TFLite flatbuffer.
    """
    if isinstance(path_or_bytes, bytes | bytearray | memoryview):
        data, source = bytes(path_or_bytes), "bytes"
    elif isinstance(path_or_bytes, str | os.PathLike):
        path = pathlib.Path(path_or_bytes)
        if not path.is_file():
            raise ValueError(
                f"Expected the path of a .tflite file. Received: {str(path)!r}, "
                f"{'which is a folder' if path.is_dir() else 'which does not exist'}. "
                "Check the path, or export the model first"
            )
        data, source = path.read_bytes(), repr(str(path))
    else:
        raise TypeError(
            "Expected the path of a .tflite file, or its bytes. "
            f"Received: {path_or_bytes!r} (of type {type(path_or_bytes)})"
        )
    if data[4:8] != _TFLITE_IDENTIFIER:
        raise ValueError(
            f"Expected a TFLite flatbuffer (identifier b'TFL3' at byte 4). Received: {source} of "
            f"{len(data)} bytes with {data[4:8]!r} there. Pass a file that a TFLite converter wrote"
        )
    return data
