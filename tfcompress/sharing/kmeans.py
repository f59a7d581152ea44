"""k-means in one dimension, as pure functions on NumPy arrays.

On a line a cluster is an interval, so assignment is a search among sorted borders and a mean is a
difference of prefix sums: an iteration over n sorted values costs O(k log n).
"""

from __future__ import annotations

import numpy as np

_ITERATIONS = 100
_RESTARTS = 3

INITS = ("kmeans++", "linear", "optimal")


def fit_centroids(
    values: np.ndarray, num_clusters: int, init: str = "kmeans++", seed: int = 0
) -> np.ndarray:
    """Centroids that make Σ (v − nearest centroid)² small.

    Args:
        values: Finite numbers of any shape, at least one.
        num_clusters: k ≥ 1.
        init: `"kmeans++"` (Arthur & Vassilvitskii 2007: every next seed is drawn with probability
            proportional to its squared distance from the seeds so far) or `"linear"` (seeds at
            equal distances between the extremes: Han et al. 2016 found them to keep large weights
            best), each followed by Lloyd's iterations to convergence; or `"optimal"`, the global
            minimum by dynamic programming (Grønlund et al. 2017), from the library kmeans1d.
        seed: Of `"kmeans++"`.

    Returns:
        float64 of shape (k,), ascending. Where there are fewer distinct values than k, each of them
        is a centroid and the last one is repeated.

    Raises:
        ValueError: An unknown `init`.
    """
    check_init(init)
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    distinct = np.unique(ordered)
    if distinct.size <= num_clusters:
        return np.pad(distinct, (0, num_clusters - distinct.size), mode="edge")
    if init == "optimal":
        return _optimal(ordered, num_clusters)
    if init == "linear":
        return lloyd(ordered, np.linspace(ordered[0], ordered[-1], num_clusters))
    random = np.random.default_rng(seed)
    runs = [lloyd(ordered, _plus_plus(ordered, num_clusters, random)) for _ in range(_RESTARTS)]
    return min(runs, key=lambda centroids: squared_error(ordered, centroids))


def check_init(init: str) -> None:
    if init not in INITS:
        raise ValueError(f"Expected init to be one of {INITS}. Received: {init=}.")


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid of every value, int32 of the shape of `values`.

    Args:
        values: Any shape.
        centroids: (k,), in any order; of two equally near ones the smaller wins.
    """
    order = np.argsort(centroids, kind="stable")
    borders = _borders(np.asarray(centroids, np.float64)[order])
    return order[np.searchsorted(borders, values, side="left")].astype(np.int32)


def squared_error(values: np.ndarray, centroids: np.ndarray) -> float:
    """Σ (v − nearest centroid)²."""
    return float(np.sum((values - centroids[nearest(values, centroids)]) ** 2))


def lloyd(ordered: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Lloyd's iterations: every centroid moves to the mean of its values until none moves.

    Args:
        ordered: Values in ascending order, (n,).
        centroids: Where to start, ascending, (k,). One that loses its values stays where it is.
    """
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(_ITERATIONS):
        edges = np.searchsorted(ordered, _borders(centroids), side="right")
        edges = np.concatenate([[0], edges, [ordered.size]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        moved = np.sort(np.where(counts > 0, means, centroids))
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def reseed_empty(
    values: np.ndarray, centroids: np.ndarray, fixed: np.ndarray | None = None
) -> np.ndarray:
    """Moves every centroid that no value is nearest to, to where the error is largest.

    The cluster with the largest squared error is split in the middle of its range; the centroids of
    both halves are their means. All other centroids stay as they are.

    Args:
        values: (n,).
        centroids: (k,).
        fixed: Boolean (k,), centroids that neither move nor take values.
    """
    centroids = np.array(centroids, np.float64)
    usable = np.flatnonzero(~fixed) if fixed is not None else np.arange(centroids.size)
    for _ in range(usable.size):
        index = usable[nearest(values, centroids[usable])]
        counts = np.bincount(index, minlength=centroids.size)
        empty = [i for i in usable if counts[i] == 0]
        if not empty:
            break
        errors = np.bincount(index, (values - centroids[index]) ** 2, centroids.size)
        widest = int(np.argmax(errors))
        members = values[index == widest]
        # Clusters of equal values cannot be split.
        if members.size == 0 or members.min() == members.max():
            break
        upper = members > (members.min() + members.max()) / 2
        centroids[widest], centroids[empty[0]] = members[~upper].mean(), members[upper].mean()
    return centroids


def _borders(ordered_centroids: np.ndarray) -> np.ndarray:
    return (ordered_centroids[1:] + ordered_centroids[:-1]) / 2


def _plus_plus(ordered: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    seeds = [ordered[random.integers(ordered.size)]]
    distances = (ordered - seeds[0]) ** 2
    for _ in range(k - 1):
        total = np.cumsum(distances)
        chosen = np.searchsorted(total, random.uniform(0, total[-1]), side="right")
        seeds.append(ordered[min(chosen, ordered.size - 1)])
        distances = np.minimum(distances, (ordered - seeds[-1]) ** 2)
    return np.sort(np.array(seeds))


def _optimal(ordered: np.ndarray, k: int) -> np.ndarray:
    import kmeans1d

    return np.sort(np.array(kmeans1d.cluster(ordered.tolist(), k).centroids))
