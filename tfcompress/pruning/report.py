"""`PruningReport`: the sparsity of each kernel, and why others are not pruned."""

from __future__ import annotations

import dataclasses

from tfcompress.tables import Printable, render_table


@dataclasses.dataclass(frozen=True)
class PruningReport(Printable):
    """The outcome of a pruning run.

    Attributes:
        weights: Number of weights of each kernel that is pruned.
        sparsity: Fraction of them outside the mask.
        skipped: What is not pruned, with the reason.
    """

    weights: dict[str, int]
    sparsity: dict[str, float]
    skipped: dict[str, str]

    @property
    def overall(self) -> float:
        """Fraction of weights outside the masks, over all kernels that are pruned."""
        removed = sum(self.weights[name] * self.sparsity[name] for name in self.weights)
        return removed / sum(self.weights.values())

    def line(self) -> str:
        """One line: overall and per kernel."""
        each = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.sparsity.items())
        return f"sparsity {100 * self.overall:.1f} % ({each})"

    def __str__(self) -> str:
        rows: list[tuple] = [
            (name, count, f"{100 * self.sparsity[name]:.2f} %", "")
            for name, count in self.weights.items()
        ]
        rows += [(name, None, "", reason) for name, reason in self.skipped.items()]
        rows.append(("all", sum(self.weights.values()), f"{100 * self.overall:.2f} %", ""))
        return render_table("Pruning", ("kernel", "weights", "sparsity", "left out because"), rows)
