"""k-means on the line, against brute force and its own promises."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcompress.sharing.kmeans import (
    INITS,
    fit_centroids,
    lloyd,
    nearest,
    reseed_empty,
    squared_error,
)

numbers = st.lists(st.integers(-50, 50).map(lambda n: n / 8), min_size=1, max_size=60)


def smallest_error(values, k):
    """Over every way to cut the sorted values into at most k intervals."""
    ordered, best = np.sort(values), np.inf
    for cuts in itertools.combinations(range(1, ordered.size), min(k, ordered.size) - 1):
        parts = np.split(ordered, cuts)
        best = min(best, sum(((p - p.mean()) ** 2).sum() for p in parts))
    return best


@given(numbers, st.lists(st.floats(-7, 7), min_size=1, max_size=9))
def test_nearest_is_nearest(values, centroids):
    values, centroids = np.array(values), np.array(centroids)
    chosen = np.abs(values - centroids[nearest(values, centroids)])
    assert np.all(chosen <= np.abs(values[:, None] - centroids).min(1) + 1e-12)


@given(st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=40)
def test_optimal_is_the_best_of_all_partitions(values, k):
    found = fit_centroids(values, k, "optimal")
    assert squared_error(np.array(values), found) == pytest.approx(smallest_error(values, k))


@given(numbers, st.integers(1, 8), st.sampled_from(INITS))
@settings(max_examples=60)
def test_every_init_gives_k_ascending_means(values, k, init):
    values = np.array(values)
    centroids = fit_centroids(values, k, init)
    assert centroids.shape == (k,)
    assert np.all(np.diff(centroids) >= 0)
    assert values.min() - 1e-9 <= centroids.min() <= centroids.max() <= values.max() + 1e-9
    if np.unique(values).size <= k:
        assert squared_error(values, centroids) == 0.0
    # Lloyd has nothing left to improve.
    moved = lloyd(np.sort(values), centroids)
    assert squared_error(values, moved) == pytest.approx(squared_error(values, centroids))


@given(numbers, st.integers(2, 6))
@settings(max_examples=50)
def test_reseeding_lowers_the_error(values, k):
    values = np.array(values)
    centroids = np.append(np.full(k - 1, 99.0), values.mean())
    before, after = (squared_error(values, c) for c in (centroids, reseed_empty(values, centroids)))
    assert after < before or (after == 0.0 or np.unique(values).size == 1)


def test_fixed_centroids_stay_and_take_nothing():
    values = np.array([0.1, 0.2, 5.0, 6.0])
    moved = reseed_empty(values, np.array([0.0, 0.15, 50.0]), np.array([True, False, False]))
    np.testing.assert_allclose(moved, [0.0, 0.15, 5.5])


def test_unknown_init():
    with pytest.raises(ValueError, match="kmeans"):
        fit_centroids([1.0, 2.0, 3.0], 2, "random")
