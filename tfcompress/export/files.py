"""Reading a `.tflite`, and what is measured on its bytes."""

from __future__ import annotations

import gzip
import hashlib
import os
import pathlib

from tfcompress.files.flatbuffer import check_tflite

PathOrBytes = str | os.PathLike | bytes | bytearray | memoryview


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
        ValueError: If there is no such file, the bytes are not a TFLite flatbuffer, or they are
            truncated or damaged.
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
    check_tflite(data, source)
    return data
