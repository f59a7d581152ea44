"""From the scores of all kernels to their masks: each kernel by itself, or one ranking for all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tfcompress.model.kernels import KernelSpec
from tfcompress.pruning.masks.groups import keep_highest
from tfcompress.pruning.masks.patterns import Pattern


def layer_masks(
    scores: Sequence[np.ndarray],
    specs: Sequence[KernelSpec],
    pattern: Pattern,
    sparsity: float,
    current: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """Gives every kernel the same sparsity.

    Args:
        scores: Scores per kernel.
        specs: Axes per kernel.
        pattern: How weights are grouped.
        sparsity: Fraction of groups to remove from every kernel, in [0, 1).
        current: Masks whose groups rank before all others.
    """
    return [
        pattern.mask(score, sparsity, spec, mask)
        for score, spec, mask in zip(scores, specs, current, strict=True)
    ]


def global_masks(
    scores: Sequence[np.ndarray],
    specs: Sequence[KernelSpec],
    pattern: Pattern,
    sparsity: float,
    current: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """Ranks the groups of all kernels together, so that kernels end at different sparsities.

    The number of kept weights is `round(total · (1 - sparsity))`, exact where all groups have the
    same size; with channels of different sizes the groups are kept from the best down until it
    is reached. The best group of every kernel stays, so that no kernel is emptied.

    Args:
        scores: Scores per kernel.
        specs: Axes per kernel.
        pattern: How weights are grouped.
        sparsity: Fraction of all weights to remove, in [0, 1).
        current: Masks whose groups rank before all others.
    """
    groups = [pattern.reduce(s, spec) for s, spec in zip(scores, specs, strict=True)]
    alive = np.concatenate([pattern.alive(m, spec) for m, spec in zip(current, specs, strict=True)])
    sizes = np.concatenate(
        [np.full(g.size, s.size // g.size) for g, s in zip(groups, scores, strict=True)]
    )
    ranked = np.concatenate(groups).astype(np.float64)
    starts = np.cumsum([0, *(g.size for g in groups)])
    for start, end in itertools.pairwise(starts):
        living = np.where(alive[start:end], ranked[start:end], -np.inf)
        ranked[start + int(np.argmax(living))] = np.inf
    keep = _keep_weights(ranked, sizes, round(sizes.sum() * (1.0 - sparsity)), alive)
    parts = np.split(keep, starts[1:-1])
    return [
        pattern.expand(part, score.shape, spec)
        for part, score, spec in zip(parts, scores, specs, strict=True)
    ]


def _keep_weights(
    ranked: np.ndarray, sizes: np.ndarray, budget: int, alive: np.ndarray
) -> np.ndarray:
    protected = int(np.isposinf(ranked).sum())
    if (sizes == sizes[0]).all():
        return keep_highest(ranked, max(protected, round(budget / int(sizes[0]))), alive)
    order = np.lexsort((-ranked, ~alive))
    filled = np.cumsum(sizes[order])
    count = max(protected, int(np.searchsorted(filled, budget, side="right")))
    keep = np.zeros(ranked.size, bool)
    keep[order[:count]] = True
    return keep
