"""How many channels each group keeps, so that a cost reaches its target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tfcompress.pruning.structure.costs import Cost

# With at most this many groups, the widths of two are changed at once.
_FEW = 24


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a group may keep.

    Attributes:
        full: Number of its channels.
        low: The fewest that it keeps, 1 or more.
        high: The most that it keeps.
        step: Kept numbers are multiples of it, or all.
    """

    full: int
    low: int
    high: int
    step: int = 1

    def nearest(self, count: float) -> int:
        """The allowed number that is nearest to `count`."""
        allowed = self.allowed
        return int(allowed[np.argmin(np.abs(allowed - count))])

    @property
    def allowed(self) -> np.ndarray:
        """All allowed numbers, from the fewest up; never none."""
        counts = np.arange(self.step, self.full + 1, self.step)
        counts = counts[(counts >= self.low) & (counts <= self.high)]
        if self.high == self.full and (not counts.size or counts[-1] != self.full):
            counts = np.append(counts, self.full)
        return counts if counts.size else np.array([max(self.low, min(self.high, self.full))])


@dataclasses.dataclass(frozen=True)
class Widths:
    """What `choose_widths` found.

    Attributes:
        kept: Number of channels that each group keeps.
        cost: The cost that this gives, as a fraction.
        evaluations: How often the cost was computed.
    """

    kept: np.ndarray
    cost: float
    evaluations: int


def uniform(bounds: Sequence[Bounds]) -> Callable[[float], np.ndarray]:
    """x in [0, 1] → what the groups keep when each loses the fraction x."""
    return lambda x: np.array([b.nearest(b.full * (1.0 - x)) for b in bounds])


def by_rank(
    scores: Sequence[np.ndarray], bounds: Sequence[Bounds]
) -> Callable[[float], np.ndarray]:
    """x in [0, 1] → what the groups keep when the fraction x of all channels goes, lowest first."""
    ranked = np.sort(np.concatenate(scores))
    ascending = [np.sort(s) for s in scores]

    def widths(x: float) -> np.ndarray:
        place = min(round(x * len(ranked)), len(ranked) - 1)
        threshold = np.inf if x >= 1.0 else ranked[place]
        return np.array(
            [
                b.nearest(float(len(s) - np.searchsorted(s, threshold)))
                for s, b in zip(ascending, bounds, strict=True)
            ]
        )

    return widths


def choose_widths(
    widths: Callable[[float], np.ndarray],
    bounds: Sequence[Bounds],
    cost: Cost,
    target: float,
    *,
    tolerance: float = 0.0,
    refine: bool = True,
    max_evaluations: int = 40,
) -> Widths:
    """Bisects how much is removed until the cost meets the target.

    Rounding makes the cost jump, so what bisection finds is then moved towards the target by one
    step of one group at a time.

    Args:
        widths: x in [0, 1] → the kept numbers; the larger x, the fewer.
        bounds: What is allowed.
        cost: Kept numbers → fraction.
        target: The fraction to reach.
        tolerance: A distance from the target that is near enough.
        refine: Whether to move groups one by one; it costs many evaluations.
        max_evaluations: Of the bisection.

    Returns:
        The nearest that was found.
    """
    known: dict[tuple[int, ...], float] = {}

    def evaluate(kept: np.ndarray) -> float:
        key = tuple(int(k) for k in kept)
        if key not in known:
            known[key] = cost(kept)
        return known[key]

    low, high = 0.0, 1.0
    best = min((widths(x) for x in (low, high)), key=lambda k: abs(evaluate(k) - target))
    while len(known) < max_evaluations and high - low > 1e-4:
        if not refine and abs(evaluate(best) - target) <= tolerance:
            break
        middle = (low + high) / 2
        kept = widths(middle)
        if abs(evaluate(kept) - target) < abs(evaluate(best) - target):
            best = kept
        low, high = (middle, high) if evaluate(kept) > target else (low, middle)
    if refine:
        best = _refine(best, bounds, evaluate, target, tolerance / 10)
        # Where layers are thin, one group up and another one down comes nearer.
        if len(bounds) <= _FEW:
            best = _refine(best, bounds, evaluate, target, tolerance, at_once=2)
    return Widths(best, evaluate(best), len(known))


def _refine(
    kept: np.ndarray,
    bounds: Sequence[Bounds],
    evaluate: Cost,
    target: float,
    enough: float,
    at_once: int = 1,
) -> np.ndarray:
    """Moves up to `at_once` groups by a step until the cost is near enough or comes no nearer."""
    while abs(evaluate(kept) - target) > enough:
        moves = [kept]
        for _ in range(at_once):
            moves += [m for start in moves for m in _one_step_away(start, bounds)]
        nearest = min(moves, key=lambda k: abs(evaluate(k) - target))
        if abs(evaluate(nearest) - target) >= abs(evaluate(kept) - target):
            break
        kept = nearest
    return kept


def _one_step_away(kept: np.ndarray, bounds: Sequence[Bounds]) -> Iterator[np.ndarray]:
    """The widths one step of one group away."""
    for g, bound in enumerate(bounds):
        allowed = bound.allowed
        at = int(np.searchsorted(allowed, kept[g]))
        for place in (at - 1, at + 1):
            if 0 <= place < len(allowed):
                moved = kept.copy()
                moved[g] = allowed[place]
                yield moved
