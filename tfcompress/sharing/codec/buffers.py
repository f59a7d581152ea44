"""Writer and reader of bytes: counts bytes written by part, and checks the length on reading."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import numpy as np

_MAX_VARINT_BYTES = 9


class Writer:
    """Bytes, and how many of them went to which part.

    Attributes:
        data: The bytes.
        parts: Part → number of bytes.
    """

    def __init__(self):
        self.data = bytearray()
        self.parts: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return len(self.data)

    def add(self, part: str, data: bytes) -> Writer:
        self.data += data
        self.parts[part] += len(data)
        return self

    def varint(self, part: str, number: int) -> Writer:
        """A non-negative integer, seven bits to a byte, the lowest first."""
        encoded = bytearray()
        while number > 127:
            encoded.append(number & 127 | 128)
            number >>= 7
        encoded.append(number)
        return self.add(part, bytes(encoded))

    def varints(self, part: str, numbers: np.ndarray) -> Writer:
        """Several integers in [0, 16384), each as `varint` writes it."""
        low, high = numbers & 127, numbers >> 7
        pairs = np.stack([low | np.where(high > 0, 128, 0), high], 1).astype(np.uint8)
        is_written = np.stack([np.ones(len(pairs), bool), high > 0], 1)
        return self.add(part, pairs[is_written].tobytes())

    def extend(self, other: Writer) -> Writer:
        self.data += other.data
        self.parts.update(other.parts)
        return self


class Reader:
    """Reads what a `Writer` wrote; a `ValueError` where something is missing."""

    def __init__(self, data: bytes):
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(
                f"Expected {count} more bytes in the packed file. Received: {self.left}. "
                "It is truncated or damaged."
            )
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def varint(self, limit: int) -> int:
        """An integer in [0, limit]."""
        number = 0
        for i in range(_MAX_VARINT_BYTES):
            byte = self.take(1)[0]
            number |= (byte & 127) << 7 * i
            if byte < 128:
                break
        if byte >= 128 or number > limit:
            raise ValueError(
                f"Expected a number up to {limit} in the packed file. Received: {number}. It is "
                "damaged."
            )
        return number

    def finish(self) -> None:
        """Raises where bytes are left over."""
        if self.left:
            raise ValueError(
                f"Expected the end of the packed file. Received: {self.left} more bytes. It is "
                "damaged."
            )


def smallest(candidates: Iterable[Writer]) -> Writer:
    """The shortest of several writers, the first of equals."""
    return min(candidates, key=len)
