"""What can be done to a layer, or to channels that go together, as one choice among several."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Literal

Kind = Literal["bits", "sparsity", "channels", "rank"]

#: Bits of weights → the preset of `quantize` that gives them.
PRESETS: dict[int, str] = {8: "int8", 4: "int4", 2: "w2a8"}
#: The same where kernels of convolutions are packed too.
PACKED_PRESETS: dict[int, str] = {8: "int8", 4: "int4-packed", 2: "int2-packed"}

#: What `sensitivity` measures by default.
DEFAULT_OPTIONS = (
    *("int8", "int4", "int2", "sparsity=0.5", "sparsity=0.8"),
    *("channels=0.75", "channels=0.5", "rank=0.5"),
)

_BITS = re.compile(r"int(8|4|2)")
_SHARE = re.compile(r"(sparsity|channels|rank)=(0?\.\d+)")


@dataclasses.dataclass(frozen=True)
class Option:
    """One thing that can be done.

    Attributes:
        kind: `"bits"` of weights (with int8 activations), `"sparsity"` (the share of weights that
            are zero), `"channels"` (the share that is kept) or `"rank"` (the share of a layer's
            multiply-accumulates that its low-rank form keeps).
        value: Bits, or a share in (0, 1).
    """

    kind: Kind
    value: float

    def __str__(self) -> str:
        return f"int{self.value:g}" if self.kind == "bits" else f"{self.kind}={self.value:g}"


def parse_options(options: Iterable[str | Option]) -> tuple[Option, ...]:
    """Options from their names.

    Args:
        options: `"int8"`, `"int4"`, `"int2"`, `"sparsity=0.5"`, `"channels=0.75"`, `"rank=0.5"`,
            with shares in (0, 1).

    Raises:
        TypeError: A single string.
        ValueError: An unknown name, or none at all.
    """
    if isinstance(options, str):
        raise TypeError(f"Expected `options` to be a sequence of names. Received: {options!r}.")
    found = tuple(dict.fromkeys(o if isinstance(o, Option) else _parse(o) for o in options))
    if not found:
        raise ValueError("Expected at least one option. Received: none.")
    return found


def _parse(name: str) -> Option:
    bits, share = _BITS.fullmatch(str(name)), _SHARE.fullmatch(str(name))
    if bits:
        return Option("bits", float(bits[1]))
    if share and 0 < float(share[2]) < 1:
        kind: Kind = next(k for k in ("sparsity", "channels", "rank") if k == share[1])
        return Option(kind, float(share[2]))
    raise ValueError(
        "Expected options such as 'int8', 'int4', 'int2', 'sparsity=0.5', 'channels=0.75' and "
        f"'rank=0.5', with shares in (0, 1). Received: {name!r}."
    )
