"""Ranks for a whole model under a budget of multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.factorization.forms import Form


def choose_forms(
    options: Mapping[str, Sequence[Form]],
    macs: Mapping[str, int],
    budget: int,
    weights: Mapping[str, float],
) -> dict[str, Form | None]:
    """One form per layer, or none, so that the sum of errors is the least under the budget.

    Minimizes Σ weight · error subject to Σ MACs ≤ budget over one choice per layer: a
    multiple-choice knapsack, solved exactly as a mixed-integer program (`scipy.optimize.milp`).

    Args:
        options: Layer → forms it may take; it may always stay as it is, with no error.
        macs: Layer → multiply-accumulates as it is.
        budget: Multiply-accumulates for all these layers together.
        weights: Layer → weight of its error.

    Raises:
        ValueError: The budget cannot be met.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    names = list(options)
    table = {name: [None, *_front(options[name])] for name in names}
    least = sum(min(f.macs if f else macs[n] for f in table[n]) for n in names)
    if least > budget:
        raise ValueError(
            "Expected target_macs that low rank can reach. Received: a budget of "
            f"{budget:,} MACs for layers that take {least:,} at the least and "
            f"{sum(macs[n] for n in names):,} as they are."
        )
    if not names:
        return {}
    choices = [(name, form) for name in names for form in table[name]]
    errors = np.array([0.0 if f is None else weights[n] * f.error for n, f in choices])
    costs = np.array([macs[n] if f is None else f.macs for n, f in choices], np.float64)
    # In shares of the budget, for the solver's tolerances are absolute.
    scale = max(float(budget), 1.0)
    one_each = np.array([[float(n == name) for n, _ in choices] for name in names])
    solution = milp(
        errors,
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs[None] / scale, -np.inf, budget / scale),
        ],
        options={"mip_rel_gap": 1e-4, "time_limit": 60.0},
    )
    if solution.x is None:
        raise RuntimeError(f"The solver gave up: {solution.message}")
    return {name: form for (name, form), x in zip(choices, solution.x, strict=True) if x > 0.5}


def _front(forms: Sequence[Form]) -> list[Form]:
    """Forms that no other one beats in both error and MACs."""
    best, kept = np.inf, []
    for form in sorted(forms, key=lambda f: (f.macs, f.error)):
        if form.error < best:
            best = form.error
            kept.append(form)
    return kept
