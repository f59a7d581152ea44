"""The pruning methods that `prune.py` compares, by name: each is a list of callbacks.

All share one budget: `total_steps` steps from scratch. What removes weights gradually does so
between 15 % and 70 % of the steps, all kernels in one ranking; sparse training moves connections
up to 75 %.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfcompress.pruning import (
    SET,
    ConstantSparsity,
    DynamicNetworkSurgery,
    PolynomialDecay,
    Pruning,
    Regularization,
    RigL,
    ScoringOptions,
)

#: In the order of the tables. `dense` is the control, `random` (gradual) and `static` (a random
#: mask from the start, small layers denser) are what a method has to beat.
METHODS = (
    "dense",
    "random",
    "static",
    "magnitude",
    "taylor",
    "fisher",
    "entropy",
    "movement",
    "snip",
    "surgery",
    "set",
    "rigl",
    "proximal",
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a run may use.

    Attributes:
        sparsity: Fraction of zeros at the end.
        total_steps: Steps of the run.
        steps_per_epoch: Steps of an epoch.
        data: `(x, y)` for gradients and activations.
        seed: Seed of the run.
    """

    sparsity: float
    total_steps: int
    steps_per_epoch: int
    data: Any
    seed: int

    def decay(self) -> PolynomialDecay:
        begin, end = (int(share * self.total_steps) for share in (0.15, 0.7))
        frequency = max(1, min(100, (end - begin) // 10))
        return PolynomialDecay(0.0, self.sparsity, begin, end, frequency=frequency)


def callbacks(method: str, budget: Budget) -> list[keras.callbacks.Callback]:
    """Returns the callbacks of one method.

    Raises:
        ValueError: If the method has no such name.
    """
    common = {"seed": budget.seed, "verbose": 0}
    whole = {"scope": "global", **common}
    stop = int(0.75 * budget.total_steps)
    frequency = max(1, min(100, stop // 10))
    if method == "dense":
        return []
    if method in ("random", "magnitude", "movement"):
        return [Pruning(budget.decay(), criterion=method, **whole)]
    if method in ("taylor", "fisher", "entropy"):
        # Many small batches, where a criterion averages over batches what it squares.
        scoring = ScoringOptions(32, 16) if method == "fisher" else ScoringOptions()
        given = {"data": budget.data, "scoring": scoring}
        return [Pruning(budget.decay(), criterion=method, **given, **whole)]
    if method == "snip":
        once = ConstantSparsity(budget.sparsity, begin_step=0, end_step=0)
        given = {"data": budget.data, "scoring": ScoringOptions(num_batches=8)}
        return [Pruning(once, criterion="snip", **given, **whole)]
    if method == "surgery":
        return [Pruning(DynamicNetworkSurgery(budget.decay()), **whole)]
    if method == "static":
        return [Pruning(SET(budget.sparsity, end_step=0), **common)]
    if method == "set":
        return [Pruning(SET(budget.sparsity, stop, frequency=budget.steps_per_epoch), **common)]
    if method == "rigl":
        rigl = RigL(budget.sparsity, stop, frequency=frequency)
        return [Pruning(rigl, data=budget.data, scoring=ScoringOptions(num_batches=2), **common)]
    if method == "proximal":
        end = budget.decay().end_step
        shrink = Regularization(l1=3e-4, proximal=True, schedule=lambda step: float(step < end))
        return [Pruning(budget.decay(), **whole), shrink]
    raise ValueError(f"Expected one of {METHODS}. Received: method={method!r}")
