"""What the bytes of a packed file are spent on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from tfcompress.tables import Printable, render_table

#: In the order of the tables.
PARTS = (
    "index",
    "values",
    "tables",
    "codebook",
    "scales",
    "floats",
    "architecture",
    "framing",
)


@dataclasses.dataclass(frozen=True)
class PackedArray:
    """One array of weights in the file.

    Attributes:
        name: Layer and variable.
        shape: Its shape.
        method: `"codebook"`, `"codes and scales"`, `"sparse"` or `"plain"`.
        nonzeros: Number of entries that are not zero.
        distinct: Number of distinct values, zero included.
        num_bytes: Bytes that it takes.
        parts: Part → bytes: where the non-zeros are (`index`), which values they have (`values`),
            the tables of both coders, the `codebook`, `scales`, plain `floats`, and `framing`.
    """

    name: str
    shape: tuple[int, ...]
    method: str
    nonzeros: int
    distinct: int
    num_bytes: int
    parts: Mapping[str, int]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits per entry, everything counted."""
        return 8 * self.num_bytes / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class PackReport(Printable):
    """What `pack` wrote. Print it.

    Attributes:
        path: The file.
        num_bytes: Its size: the sum of all parts.
        arrays: Every array of weights.
        parts: Part → bytes, over the whole file.
    """

    path: str
    num_bytes: int
    arrays: tuple[PackedArray, ...]
    parts: Mapping[str, int]

    @property
    def float_num_bytes(self) -> int:
        """Bytes of the same weights in float32."""
        return 4 * sum(array.size for array in self.arrays)

    @property
    def ratio(self) -> float:
        """How many times smaller than its float32 weights the file is."""
        return self.float_num_bytes / self.num_bytes

    def layer_bytes(self) -> dict[str, int]:
        """Layer → bytes of its arrays."""
        found: dict[str, int] = {}
        for array in self.arrays:
            layer = array.name.rpartition("/")[0]
            found[layer] = found.get(layer, 0) + array.num_bytes
        return found

    def __str__(self) -> str:
        used = [part for part in PARTS if self.parts.get(part)]
        rows = [
            (
                array.name,
                "×".join(map(str, array.shape)),
                array.method,
                array.nonzeros,
                array.distinct,
                *(array.parts.get(part, 0) or "" for part in used),
                array.num_bytes,
                f"{array.bits:.2f}",
            )
            for array in self.arrays
        ]
        total = [self.parts.get(part, 0) for part in used]
        rows.append(("file", "", "", "", "", *total, self.num_bytes, ""))
        heads = ("weights", "shape", "as", "non-zeros", "distinct", *used, "bytes", "bits each")
        title = (
            f"{self.path}: {self.num_bytes:,} bytes, {self.ratio:.1f} times smaller than its "
            f"{self.float_num_bytes:,} bytes of float32"
        )
        return render_table(title, heads, rows, width=180)
