"""What `shrink` did: widths before and after, what stayed and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tfcompress.tables import Printable, render_table


@dataclasses.dataclass(frozen=True)
class ShrinkReport(Printable):
    """The outcome of a `shrink`.

    Attributes:
        widths: Name of a group (the layers that make its channels) → channels before and after.
        fractions: `"macs"` and `"parameters"` (and `"cost"`) left, as fractions of the given
            model's; `"macs"` is missing where sizes of the inputs are not known.
        round_to: What widths were rounded to in the end.
        removed: Name of a layer → indices of its output channels that went.
        kept: Name of a layer → why (some of) its channels could not be removed.
        notes: What else there is to know: rounding relaxed, channels that were refused, layers
            that now normalize over fewer channels, constants moved into biases.
    """

    widths: Mapping[str, tuple[int, int]]
    fractions: Mapping[str, float]
    round_to: int
    removed: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        left = ", ".join(f"{100 * value:.1f} % of {name}" for name, value in self.fractions.items())
        rows = [(name, before, after) for name, (before, after) in self.widths.items()]
        text = f"Shrunk to {left}\n" + render_table("", ("channels of", "before", "after"), rows)
        if self.kept:
            text += "\n" + render_table("Kept whole", ("layer", "why"), list(self.kept.items()))
        return text + "".join(f"note: {note}\n" for note in self.notes)
