"""Candidates without training: the least predicted loss at every cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from tfcompress.analysis.costs.budgets import Costs
from tfcompress.analysis.costs.costs import LayerBytes, predicted_costs
from tfcompress.analysis.options.assignment import Assignment
from tfcompress.analysis.search.knapsack import choose
from tfcompress.analysis.search.losses import Losses

#: Sizes of a file: as it is, and under gzip; attributes of `Costs`.
Size = Literal["num_bytes", "gzip_bytes"]
SIZES: tuple[Size, ...] = ("num_bytes", "gzip_bytes")

# Sizes between the smallest and the largest that are tried for every set of widths and ranks.
_SIZES = 12


@dataclasses.dataclass(frozen=True)
class Point:
    """A candidate, as predicted.

    Attributes:
        assignment: What each layer gets.
        loss: Sum of the divergences of its options.
        costs: Predicted costs.
        by_size: Whether its widths come from a ranking of channels by size, not from divergences.
    """

    assignment: Assignment
    loss: float
    costs: Costs
    by_size: bool = False


def assignments_at(
    structure: Assignment,
    losses: Losses,
    sizes: LayerBytes,
    base: Costs,
    layers: Sequence[str],
    swept: Sequence[Size],
    limits: Sequence[Mapping[Size, float]] = (),
) -> Iterator[Point]:
    """The least loss at sizes from the smallest to the largest, for one set of widths and ranks.

    Args:
        structure: The widths and ranks.
        losses: Divergence of choices.
        sizes: Bytes of kernels in it.
        base: Costs of its int8 file.
        layers: The layers to choose for.
        swept: The sizes that are swept, each alone.
        limits: Sizes to meet beside the sweeps, all of a mapping at once.
    """
    choices = [losses.choices(name) for name in layers]
    loss = [
        [losses.of_layer(n, b, s) for b, s in row] for n, row in zip(layers, choices, strict=True)
    ]
    change = {
        size: [
            [float(sizes(n, b, s)[index] - sizes(n, 8)[index]) for b, s in row]
            for n, row in zip(layers, choices, strict=True)
        ]
        for index, size in enumerate(SIZES)
    }
    targets: list[Mapping[Size, float]] = []
    for size in swept:
        least = sum(min(row) for row in change[size])
        targets += [{size: target} for target in np.linspace(least, 0.0, _SIZES)]
    targets += [{s: limit - getattr(base, s) for s, limit in found.items()} for found in limits]
    seen = set()
    for target in targets:
        chosen = choose(loss, [change[s] for s in target], [t + 1e-6 for t in target.values()])
        if chosen is None:
            continue
        picked = [row[i] for row, i in zip(choices, chosen, strict=True)]
        assignment = dataclasses.replace(
            structure,
            sparsity={n: s for n, (_, s) in zip(layers, picked, strict=True) if s},
            bits={n: b for n, (b, _) in zip(layers, picked, strict=True) if b != 8},
        )
        if assignment.key not in seen:
            seen.add(assignment.key)
            costs = predicted_costs(base, assignment, sizes, layers)
            yield Point(assignment, losses.of(assignment), costs)


def undominated(points: Sequence[Point], cost: Callable[[Costs], float]) -> list[Point]:
    """The points that no other one beats in both cost and loss, cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (cost(p.costs), p.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


def knee(points: Sequence[Point], cost: Callable[[Costs], float]) -> int:
    """Index of the point farthest below the line between the ends, in logarithms of both."""
    if len(points) < 3:
        return len(points) - 1
    x = np.log([cost(p.costs) for p in points])
    y = np.log([max(p.loss, 1e-12) for p in points])
    x, y = (x - x[0]) / (x[-1] - x[0]), (y - y[-1]) / (y[0] - y[-1])
    return int(np.argmax(1 - x - y))
