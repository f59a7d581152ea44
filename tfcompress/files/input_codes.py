"""What the codes of inputs stand for, where the file's own scale is that of a rescaled tensor.

An input whose Rescaling is folded has the scale and zero point of the rescaled tensor, as LiteRT
needs them. For the values that the Keras model takes, the file holds another scale and zero point
as JSON in an entry of its metadata: `{"<signature>": {"<input>": [scale, zero point]}}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ai_edge_litert import schema_py_generated as schema

#: Name of the entry.
ENTRY = "tfcompress_input_codes"

#: Signature → input → scale and zero point.
InputCodes = Mapping[str, Mapping[str, tuple[float, int]]]


def to_bytes(codes: InputCodes) -> bytes:
    """The content of the entry."""
    return json.dumps(codes, separators=(",", ":"), sort_keys=True).encode()


def input_codes(data: bytes) -> InputCodes:
    """Reads the entry; empty where the file has none.

    Args:
        data: A `.tflite` of sound structure.

    Raises:
        ValueError: The entry is damaged.
    """
    content = metadata_entry(data, ENTRY)
    if content is None:
        return {}
    try:
        found = json.loads(content.decode())
        return {
            str(key): {str(name): _checked(*pair) for name, pair in inputs.items()}
            for key, inputs in found.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected scales and zero points by signature and input in the entry {ENTRY!r} of the "
            f"file's metadata. Received: {content[:80]!r}. The file is damaged"
        ) from error


def metadata_entry(data: bytes, name: str) -> bytes | None:
    """The content of an entry of a file's metadata; `None` where it has none of that name."""
    root = schema.Model.GetRootAs(data, 0)
    for i in range(root.MetadataLength()):
        entry = root.Metadata(i)
        if entry is None or entry.Name() != name.encode():
            continue
        buffer = root.Buffers(entry.Buffer()) if entry.Buffer() < root.BuffersLength() else None
        if buffer is not None and buffer.DataLength():
            return buffer.DataAsNumpy().tobytes()
    return None


def _checked(scale: Any, zero_point: Any) -> tuple[float, int]:
    if not isinstance(scale, float) or not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"no scale: {scale!r}")
    if not isinstance(zero_point, int) or isinstance(zero_point, bool) or abs(zero_point) > 2**31:
        raise ValueError(f"no zero point: {zero_point!r}")
    return scale, zero_point
