"""The Deep Compression codec: packed files, exact to the bit."""

from tfcompress.sharing.codec.packing import pack, unpack
from tfcompress.sharing.codec.report import PackedArray, PackReport

__all__ = ["PackReport", "PackedArray", "pack", "unpack"]
