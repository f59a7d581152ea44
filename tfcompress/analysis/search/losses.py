"""What every choice of a layer and of its channels loses, by the table of sensitivities."""

from __future__ import annotations

import numpy as np

from tfcompress.analysis.options.assignment import Assignment
from tfcompress.analysis.options.options import Option, parse_options
from tfcompress.analysis.sensitivity.table import Sensitivity


class Losses:
    """Divergence of every choice of a layer and of a group of channels, from the table.

    Args:
        table: What each option costs alone.
    """

    def __init__(self, table: Sensitivity):
        self._rows = {(row.target, row.option): row.divergence for row in table}
        self.bits: dict[str, list[int]] = {}
        self.sparsity: dict[str, list[float]] = {}
        self.channels: dict[str, list[float]] = {}
        self.rank: dict[str, list[float]] = {}
        for target, name in self._rows:
            option: Option = parse_options([name])[0]
            if option.kind == "bits":
                self.bits.setdefault(target, []).append(int(option.value))
            else:
                getattr(self, option.kind).setdefault(target, []).append(option.value)

    @property
    def layers(self) -> list[str]:
        """The layers that may have fewer bits or weights."""
        return [name for name in self.bits if 8 in self.bits[name]]

    def choices(self, layer: str) -> list[tuple[int, float]]:
        """`(bits, sparsity)` of every choice of a layer, int8 first."""
        found = [(8, 0.0)]
        found += [(b, s) for b in self.bits[layer] for s in (0.0, *self.sparsity.get(layer, ()))]
        return list(dict.fromkeys(found))

    def of_layer(self, layer: str, bits: int, sparsity: float) -> float:
        """Divergence of a choice of a layer."""
        found = self._rows[layer, f"int{bits}"]
        return found + (self._rows[layer, f"sparsity={sparsity:g}"] if sparsity else 0.0)

    def of_channels(self, group: str, share: float) -> float:
        """Divergence of a width of a group; between two that were measured by interpolation."""
        known = sorted(self.channels.get(group, ()))
        if share >= 1 or not known:
            return 0.0
        losses = [self._rows[group, f"channels={value:g}"] for value in known]
        return float(np.interp(share, [*known, 1.0], [*losses, 0.0]))

    def of_rank(self, layer: str, share: float) -> float:
        """Divergence of the low-rank form of a layer."""
        return 0.0 if share >= 1 else self._rows[layer, f"rank={share:g}"]

    def of(self, assignment: Assignment) -> float:
        """The sum over an assignment; every layer is in int8 at least."""
        layers = sum(
            self.of_layer(n, assignment.bits.get(n, 8), assignment.sparsity.get(n, 0.0))
            for n in self.layers
        )
        structure = sum(self.of_channels(g, s) for g, s in assignment.channels.items())
        structure += sum(self.of_rank(n, s) for n, s in assignment.ranks.items())
        return layers + structure
