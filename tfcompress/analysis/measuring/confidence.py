"""How much worse a compressed model is, and how sure that is: paired differences."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import numpy as np
from keras import tree

from tfcompress.analysis.measuring.metrics import Metric

# Resamples of a metric that is no mean over samples.
_RESAMPLES = 200


@dataclasses.dataclass(frozen=True)
class Drop:
    """The drop of a metric from a reference, on the same samples.

    Attributes:
        mean: The drop, in units of the metric; negative where the model is better.
        bound: Upper end of its one-sided confidence interval.
        samples: How many samples.
        confidence: Of the bound, in (0, 1).
    """

    mean: float
    bound: float
    samples: int
    confidence: float

    def is_sure(self, max_drop: float) -> bool:
        """Whether the bound is narrow enough to decide by it: at most half of `max_drop` away.

        With wider ones nothing would hold but a model that is better than the reference.
        """
        return self.bound - self.mean <= max_drop / 2

    def holds(self, max_drop: float) -> bool:
        """Whether the drop is at most `max_drop`: by the bound, or by the mean where it is wide."""
        return (self.bound if self.is_sure(max_drop) else self.mean) <= max_drop


def paired_drop(
    metric: Metric, labels: Any, reference: Any, outputs: Any, confidence: float = 0.95
) -> Drop:
    """The drop from the reference's outputs to others on the same samples.

    Samples are paired: what both get right or wrong adds no variance. For a metric that is a mean
    over samples the bound is mean(d) + z · std(d) / √n, d the differences per sample; where these
    are −1, 0 and 1, as those of accuracy, after adding half a sample to each cell of the table of
    right and wrong (Agresti and Min 2005), for without a flip the deviation is 0 whatever n is. For
    another one it is the quantile of bootstrap resamples of the samples (Efron 1979). Where sample
    weights w count, n is (Σw)² / Σw² (Kish 1965).

    Args:
        metric: The metric.
        labels: Labels.
        reference: Outputs of the reference, arrays `(n, …)`.
        outputs: Outputs of the model in question.
        confidence: Of the bound, in (0, 1).
    """
    before, after = metric.per_sample(labels, reference), metric.per_sample(labels, outputs)
    count = len(tree.flatten(outputs)[0])
    if before is not None and after is not None:
        differences = (before[0] - after[0]) * (-1 if metric.minimized else 1)
        weights = np.ones(count) if before[1] is None else before[1]
        mean, bound = _mean_and_bound(differences, weights, confidence)
        return Drop(mean, bound, int(np.count_nonzero(weights)), confidence)
    mean = metric.drop(metric.value(labels, reference), metric.value(labels, outputs))
    rng = np.random.default_rng(0)
    drops = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(0, count, count)
        y, a, b = (
            tree.map_structure(lambda array, r=rows: np.asarray(array)[r], part)
            for part in (labels, reference, outputs)
        )
        drawn = metric.of_rows(rows)
        drops.append(metric.drop(drawn.value(y, a), drawn.value(y, b)))
    return Drop(mean, float(np.quantile(drops, confidence)), count, confidence)


def _mean_and_bound(
    differences: np.ndarray, weights: np.ndarray, confidence: float
) -> tuple[float, float]:
    shares = weights / np.sum(weights)
    mean, count = float(np.sum(shares * differences)), 1 / float(np.sum(np.square(shares)))
    z = statistics.NormalDist().inv_cdf(confidence)
    if np.isin(differences, (-1, 0, 1)).all():
        lost, gained = (count * float(np.sum(shares[differences == sign])) for sign in (1, -1))
        return mean, max(mean, _bound_of_flips(lost, gained, count, z))
    if count <= 1:
        return mean, float("inf")
    variance = float(np.sum(shares * np.square(differences - mean))) * count / (count - 1)
    return mean, mean + z * float(np.sqrt(variance / count))


def _bound_of_flips(lost: float, gained: float, samples: float, z: float) -> float:
    """The upper end for differences of −1, 0 and 1, each cell with half a sample more."""
    lost, gained, count = lost + 0.5, gained + 0.5, samples + 2
    mean = (lost - gained) / count
    deviation = np.sqrt(lost + gained - (lost - gained) ** 2 / count) / count
    return float(mean + z * deviation)
