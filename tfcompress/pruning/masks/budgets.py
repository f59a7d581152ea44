"""How a total sparsity is shared out over layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def uniform(shapes: Sequence[tuple[int, ...]], sparsity: float) -> list[float]:
    """Every layer has the same density `1 - sparsity`."""
    return [1.0 - sparsity for _ in shapes]


def erdos_renyi_kernel(shapes: Sequence[tuple[int, ...]], sparsity: float) -> list[float]:
    """Small layers are denser than large ones.

    The density of a layer is proportional to `Σ dims / Π dims` of its kernel, which for a dense
    layer is `(inputs + outputs) / (inputs · outputs)`; layers that would exceed 1 are dense, and
    the others share what is left (Mocanu 2018; Evci 2020, https://arxiv.org/abs/1911.11134).

    Args:
        shapes: Shapes of the kernels.
        sparsity: Fraction of zeros over all kernels, in [0, 1).

    Returns:
        The density of each layer, in (0, 1]; weighted by size they sum to `1 - sparsity`.
    """
    sizes = np.array([np.prod(shape) for shape in shapes], float)
    raw = np.array([np.sum(shape) for shape in shapes], float) / sizes
    dense = np.zeros(len(shapes), bool)
    budget = (1.0 - sparsity) * sizes.sum()
    while True:
        free = budget - sizes[dense].sum()
        scale = free / (raw * sizes)[~dense].sum() if not dense.all() else 0.0
        exceeding = ~dense & (raw * scale > 1.0)
        if not exceeding.any():
            return list(np.where(dense, 1.0, raw * scale))
        dense |= ~dense & (raw == raw[~dense].max())


BUDGETS = {"uniform": uniform, "erk": erdos_renyi_kernel}
