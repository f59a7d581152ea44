"""The multiple-choice knapsack, solved exactly."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np


def choose(
    losses: Sequence[Sequence[float]],
    costs: Sequence[Sequence[Sequence[float]]],
    budgets: Sequence[float],
) -> list[int] | None:
    """One option per item, so that the sum of losses is the least within the budgets.

    Minimizes Σ loss subject to Σ cost ≤ budget for every resource: a mixed-integer program
    (`scipy.optimize.milp`).

    Args:
        losses: Item → loss of each of its options.
        costs: Resource → item → cost of each of its options; may be negative.
        budgets: Resource → what all items together may cost.

    Returns:
        Item → index of its option; `None` where the budgets cannot be met.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not losses:
        return [] if all(budget >= 0 for budget in budgets) else None
    sizes = [len(options) for options in losses]
    item_of = np.repeat(np.arange(len(losses)), sizes)
    one_each = (item_of[None] == np.arange(len(losses))[:, None]).astype(np.float64)
    constraints = [LinearConstraint(one_each, 1, 1)]
    for resource, budget in zip(costs, budgets, strict=True):
        flat = np.concatenate([np.asarray(options, np.float64) for options in resource])
        # In units of the largest cost, for the solver's tolerances are absolute.
        scale = max(float(np.abs(flat).max()), 1e-12)
        constraints.append(LinearConstraint(flat[None] / scale, -np.inf, budget / scale))
    objective = np.concatenate([np.asarray(options, np.float64) for options in losses])
    with _silent():
        solution = milp(
            objective / max(float(np.abs(objective).max()), 1e-12),
            integrality=np.ones(len(objective)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 1e-6, "time_limit": 60.0},
        )
    if solution.x is None:
        return None
    chosen = np.flatnonzero(solution.x > 0.5)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [int(index - starts[item]) for item, index in enumerate(chosen)]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps the solver from printing: its debugging output goes past `sys.stdout`."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
