"""Candidates without training: the least predicted loss at every cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np

from tfcompress.analysis.costs.budgets import Costs
from tfcompress.analysis.costs.costs import LayerBytes, predicted_costs
from tfcompress.analysis.options.assignment import Assignment
from tfcompress.analysis.options.options import Option, parse_options
from tfcompress.analysis.options.widths import Widths
from tfcompress.analysis.search.knapsack import choose
from tfcompress.analysis.sensitivity.table import Sensitivity
from tfcompress.model.macs import count_macs

# Sizes between the smallest and the largest that are tried for every set of widths and ranks.
_SIZES = 12
# Shares of the multiply-accumulates that widths and ranks are chosen for.
_MACS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25)


@dataclasses.dataclass(frozen=True)
class Point:
    """A candidate, as predicted.

    Attributes:
        assignment: What each layer gets.
        loss: Sum of the divergences of its options.
        costs: Predicted costs.
    """

    assignment: Assignment
    loss: float
    costs: Costs


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
        """Divergence of a width of a group."""
        return 0.0 if share >= 1 else self._rows[group, f"channels={share:g}"]

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


def structures(model: keras.Model, widths: Widths | None, losses: Losses) -> list[Assignment]:
    """Sets of widths and ranks, from the whole model to the least, of least loss at their MACs.

    The products of a layer depend on the channels that it reads and makes, so that savings do not
    add up; the knapsack's budget is lowered until the true number is within it.

    Args:
        model: The float model.
        widths: Its groups of channels, where channels may be taken.
        losses: Divergence of choices.
    """
    found = [Assignment()]
    macs = _Macs(model, widths)
    items = [("channels", name, shares) for name, shares in losses.channels.items()]
    items += [("ranks", name, shares) for name, shares in losses.rank.items()]
    if not items:
        return found
    choices = [[1.0, *sorted(shares, reverse=True)] for _, _, shares in items]
    of = {"channels": losses.of_channels, "ranks": losses.of_rank}
    loss = [
        [of[kind](name, share) for share in row]
        for (kind, name, _), row in zip(items, choices, strict=True)
    ]
    saved = [
        [macs(_structure([(kind, name, s)])) - 1.0 if s < 1 else 0.0 for s in row]
        for (kind, name, _), row in zip(items, choices, strict=True)
    ]
    for target in _MACS[1:]:
        budget = target - 1.0
        for _ in range(12):
            chosen = choose(loss, [saved], [budget])
            if chosen is None:
                break
            structure = _structure(
                (kind, name, row[index])
                for (kind, name, _), row, index in zip(items, choices, chosen, strict=True)
            )
            left = macs(structure)
            if left <= target:
                if structure not in found:
                    found.append(structure)
                break
            budget -= left - target
    return found


def _structure(choices: Iterable[tuple[str, str, float]]) -> Assignment:
    """The assignment of `(kind, group or layer, share)`; a share of 1 leaves it whole."""
    picked: dict[str, dict[str, float]] = {"channels": {}, "ranks": {}}
    for kind, name, share in choices:
        if share < 1:
            picked[kind][name] = share
    return Assignment(picked["channels"], picked["ranks"])


class _Macs:
    """Multiply-accumulates of a structure over those of the whole model."""

    def __init__(self, model: keras.Model, widths: Widths | None):
        self._model, self._widths = model, widths
        self._whole: float | None = None

    def __call__(self, structure: Assignment) -> float:
        if not structure.ranks and self._widths is not None:
            return self._widths.macs(structure.channels)
        if self._whole is None:
            self._whole = count_macs(self._model)
        return count_macs(structure.structured(self._model, self._widths).model) / self._whole


def assignments_at(
    structure: Assignment,
    losses: Losses,
    sizes: LayerBytes,
    base: Costs,
    layers: Sequence[str],
    cost: Callable[[Costs], float],
    index: int,
    limits: Sequence[float] = (),
) -> Iterator[Point]:
    """The least loss at sizes from the smallest to the largest, for one set of widths and ranks.

    Args:
        structure: The widths and ranks.
        losses: Divergence of choices.
        sizes: Bytes of kernels in it.
        base: Costs of its int8 file.
        layers: The layers to choose for.
        cost: The size of costs, in bytes.
        index: Which of `(bytes, bytes under gzip)` that is.
        limits: Sizes to meet, beside a sweep.
    """
    choices = [losses.choices(name) for name in layers]
    loss = [
        [losses.of_layer(n, b, s) for b, s in row] for n, row in zip(layers, choices, strict=True)
    ]
    change = [
        [float(sizes(n, b, s)[index] - sizes(n, 8)[index]) for b, s in row]
        for n, row in zip(layers, choices, strict=True)
    ]
    least = sum(min(row) for row in change)
    most = cost(base)
    targets = [most + t for t in np.linspace(least, 0.0, _SIZES)]
    targets += [limit for limit in limits if most + least <= limit < most]
    seen = set()
    for target in sorted(set(targets)):
        chosen = choose(loss, [change], [target - most + 1e-6])
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
