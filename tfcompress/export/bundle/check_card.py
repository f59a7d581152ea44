"""What a description of a file must say for its readers, checked before any of them uses it.

A checksum that anybody can compute anew says nothing of where a description comes from.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from tfcompress.export.bundle.preprocessing import check_preprocessing

_DTYPES = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32")
# The largest `.tflite` has 2 GB, and a tensor no more elements than a signed 32-bit number.
_MOST_ELEMENTS = 2**31 - 1


def check_card(content: Mapping, path: pathlib.Path) -> None:
    """Raises `ValueError` unless a description holds what readers rely on.

    Args:
        content: The description.
        path: Where it was read, for the message.
    """
    for key, (is_sound, wanted) in _ENTRIES.items():
        if not is_sound(content.get(key)):
            raise ValueError(
                f"Expected {wanted} as {key!r} of a description. Received: another value in "
                f"{str(path)!r}. Pass a file that write_bundle or export_tflite wrote"
            )
    try:
        check_preprocessing(content.get("preprocessing") or [])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error} It stands in {str(path)!r}.") from error


def _is_file(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("sha256"), str):
        return False
    sizes = [value.get(key, 0) for key in ("bytes", "gzip_bytes")]
    return _is_file_name(value.get("name", "model.tflite")) and all(map(_is_count, sizes))


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_signatures(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_signature, value))


def _is_signature(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("key"), str | None):
        return False
    sides = [value.get(side) for side in ("inputs", "outputs")]
    return all(isinstance(side, list) and all(map(_is_tensor, side)) for side in sides)


def _is_tensor(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    shape, scale, zero_point = (value.get(key) for key in ("shape", "scale", "zero_point"))
    is_shape = (
        isinstance(shape, list)
        and all(_is_count(size) and size > 0 for size in shape)
        and math.prod(shape) <= _MOST_ELEMENTS
    )
    return is_shape and value.get("dtype") in _DTYPES and _is_grid(scale, zero_point)


def _is_grid(scale: Any, zero_point: Any) -> bool:
    if scale is None or zero_point is None:
        return scale is None and zero_point is None
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    is_scale = is_number and math.isfinite(scale) and scale > 0
    is_code = isinstance(zero_point, int) and not isinstance(zero_point, bool)
    return is_scale and is_code and -(2**15) <= zero_point < 2**15


def _is_labels(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(x, str) for x in value))


def _is_texts(value: Any) -> bool:
    texts = isinstance(value, dict) and all(isinstance(x, str | None) for x in value.values())
    return value is None or texts


#: Entry → (check, what it is). All but `file` and `signatures` may be missing.
_ENTRIES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "file": (_is_file, "a file name without a folder, its checksum and its sizes"),
    "signatures": (
        _is_signatures,
        "one or more signatures, whose tensors have a name, a shape, a data type, and a positive "
        "scale with a whole zero point or neither,",
    ),
    "golden": (
        lambda value: isinstance(value, str | None),
        "the name of the golden pairs, or null",
    ),
    "labels": (_is_labels, "a list of texts, or null,"),
    "preprocessing": (lambda value: isinstance(value, list | None), "a list of steps"),
    "versions": (_is_texts, "the versions of packages"),
    "report": (lambda value: isinstance(value, dict | None), "an object of figures"),
}
