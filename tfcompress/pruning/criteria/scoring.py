"""Runs a criterion over kernels, with the gradients and activations that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfcompress.model.finite import check_finite
from tfcompress.pruning.criteria.registry import Criterion
from tfcompress.pruning.criteria.statistics import Statistics


def compute_scores(
    criterion: Criterion,
    statistics: Statistics,
    names: Sequence[str],
    seeds: Sequence[tuple[int, ...]],
    parts: Sequence[tuple[Any, ...]] = (),
) -> list[np.ndarray]:
    """Returns one array of scores per kernel.

    Args:
        criterion: The criterion.
        statistics: Knows the kernels, their gradients and their activations.
        names: Names of the kernels, for errors.
        seeds: A seed per kernel.
        parts: The batches to look at, where the criterion needs data.

    Raises:
        ValueError: If a score is not a number, or there is not one per weight.
        NotFinite: If weights, gradients or activations are not finite.
    """
    kernels = [k.variable.numpy() for k in statistics.kernels]
    check_finite(kernels, names, "weights")
    needed = criterion.parameters
    nothing: list[Any] = [None] * len(kernels)
    activations = [
        statistics.activations(part) if "activations" in needed else nothing for part in parts
    ]
    if "gradient" in needed:
        scores = [np.zeros(kernel.shape, np.float32) for kernel in kernels]
        for part, outputs in zip(parts, activations, strict=True):
            gradients = statistics.gradients(part)
            check_finite(gradients, names, "gradients")
            if "activations" in needed:
                check_finite(outputs, names, "activations")
            for i, (k, g, a, s) in enumerate(zip(kernels, gradients, outputs, seeds, strict=True)):
                scores[i] += criterion(kernel=k, gradient=g, activations=a, seed=s) / len(parts)
    else:
        joined = nothing
        if "activations" in needed:
            joined = [np.concatenate(outputs) for outputs in zip(*activations, strict=True)]
            check_finite(joined, names, "activations")
        scores = [
            criterion(kernel=k, activations=a, seed=s)
            for k, a, s in zip(kernels, joined, seeds, strict=True)
        ]
    return [
        _checked(score, kernel, name, criterion.name)
        for score, kernel, name in zip(scores, kernels, names, strict=True)
    ]


def _checked(score: Any, kernel: np.ndarray, name: str, criterion: str) -> np.ndarray:
    score = np.asarray(score)
    if score.shape != kernel.shape:
        raise ValueError(
            f"A criterion returns one score per weight: expected shape {kernel.shape} for "
            f"{name!r}. Received: shape {score.shape} from {criterion!r}"
        )
    if np.isnan(score).any():
        # Of weights and evidence that are finite: no other batch would mend it.
        raise ValueError(
            f"Expected scores that are numbers. Received: NaN by {criterion!r} in {name!r}, from "
            "weights that are finite. Mend the criterion"
        )
    return score
