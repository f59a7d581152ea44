"""The values of constant tensors, as stored: INT4 and INT2 are packed several to a byte."""

from __future__ import annotations

import numpy as np

#: Packed dtype → (bits, signed). The first value sits in the lowest bits of a byte.
_PACKED = {"int4": (4, True), "uint4": (4, False), "int2": (2, True)}


def unpack(data: bytes | np.ndarray, dtype: str, size: int) -> np.ndarray | None:
    """Returns the stored values of a constant tensor as a flat array.

    Args:
        data: The bytes of the tensor's buffer.
        dtype: Lower-case name of the tensor's type, such as `"int8"` or `"int4"`.
        size: Number of values in the tensor; the padding of a packed last byte is dropped.

    Returns:
        An array of at most `size` values (a sparsely encoded tensor stores fewer), int8 or uint8
        for packed types; `None` for a type that NumPy cannot hold.
    """
    raw = np.frombuffer(bytes(data), np.uint8)
    if dtype in _PACKED:
        bits, signed = _PACKED[dtype]
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = ((raw[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[:size].astype(np.int8)
        if signed:
            return np.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes).astype(np.int8)
        return codes.astype(np.uint8)
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)[:size]
    try:
        numpy_dtype = np.dtype(dtype)
    except TypeError:
        return None
    if numpy_dtype.kind not in "biufc" or raw.size % numpy_dtype.itemsize:
        return None
    return raw.view(numpy_dtype)[:size]
