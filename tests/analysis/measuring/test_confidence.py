"""Bounds of paired drops against simulation."""

import numpy as np
import pytest

from tfcompress.analysis.measuring.confidence import paired_drop
from tfcompress.analysis.measuring.metrics import Metric, accuracy


def one_hot(classes):
    return np.eye(2)[classes]


def test_the_bound_covers_the_true_drop_as_often_as_it_says():
    rng = np.random.default_rng(0)
    metric = Metric("accuracy", False, accuracy)
    covered = []
    for _ in range(300):
        labels = np.zeros(400, int)
        before = (rng.random(400) < 0.1).astype(int)
        # 5 % of the samples are lost, 2 % are gained: a drop of about 0.9 * 0.05 - 0.1 * 0.02.
        flip = np.where(before == 0, rng.random(400) < 0.05, rng.random(400) < 0.02)
        after = np.where(flip, 1 - before, before)
        drop = paired_drop(metric, labels, one_hot(before), one_hot(after))
        assert drop.mean == pytest.approx(np.mean(before == 0) - np.mean(after == 0))
        covered.append(drop.bound >= 0.9 * 0.05 - 0.1 * 0.02)
    assert 0.91 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("function", [accuracy, lambda y, p: np.abs(y - p[:, 1])])
def test_samples_of_weight_0_do_not_count(function):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    before, after = rng.random((2, 300, 2))
    kept = np.r_[np.ones(200), np.zeros(100)]

    def weigh(y, p, weights):
        return function(y, p), weights

    metric = Metric("error", True, weigh, 3 * kept)
    found = paired_drop(metric, labels, before, after)
    plain = Metric("error", True, function)
    expected = paired_drop(plain, labels[:200], before[:200], after[:200])
    assert found.mean == pytest.approx(expected.mean)
    assert found.bound == pytest.approx(expected.bound)
    assert found.samples == expected.samples == 200


def test_unequal_weights_count_as_fewer_samples():
    labels, same = np.zeros(400, int), one_hot(np.zeros(400, int))

    def weigh(y, p, weights):
        return accuracy(y, p), weights

    bounds = [
        paired_drop(Metric("accuracy", False, weigh, weights), labels, same, same).bound
        for weights in (np.ones(400), np.linspace(0, 1, 400), np.eye(400)[0])
    ]
    assert bounds[0] < bounds[1] < bounds[2]


def test_a_weighted_metric_of_all_samples_is_resampled_with_its_weights():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=400)
    kept = np.r_[np.ones(200), np.zeros(200)]
    good, bad = labels + 0.1 * rng.normal(size=400), labels + 0.2 * rng.normal(size=400)
    # What has no weight is far off.
    good[200:], bad[200:] = 0, 100

    def rmse(y, p, weights):
        return float(np.sqrt(np.sum(weights * (y - p) ** 2) / np.sum(weights)))

    drop = paired_drop(Metric("rmse", True, rmse, kept), labels, good, bad)
    first = slice(200)
    expected = [rmse(labels[first], outputs[first], kept[first]) for outputs in (good, bad)]
    assert drop.mean == pytest.approx(expected[1] - expected[0])
    assert drop.mean < drop.bound < drop.mean + 0.04


def test_a_metric_of_all_samples_is_resampled():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=500)
    metric = Metric("rmse_error", True, lambda y, p: float(np.sqrt(np.mean((y - p) ** 2))))
    good, bad = labels + rng.normal(size=500) * 0.1, labels + rng.normal(size=500) * 0.2
    drop = paired_drop(metric, labels, good, bad)
    assert drop.mean == pytest.approx(0.1, abs=0.02)
    assert drop.mean < drop.bound < drop.mean + 0.02
    assert not drop.holds(0.05)
    assert drop.holds(0.15)


def test_few_samples_are_decided_by_the_mean():
    metric = Metric("accuracy", False, accuracy)
    labels = np.zeros(50, int)
    before, after = np.zeros(50, int), np.r_[1, np.zeros(49, int)]
    drop = paired_drop(metric, labels, one_hot(before), one_hot(after))
    assert drop.mean == pytest.approx(0.02)
    assert not drop.is_sure(0.02)
    assert drop.holds(0.02)
    # The bound is 0.064.
    assert not drop.is_sure(0.04)
    assert drop.holds(0.04)
    assert drop.is_sure(0.1)


@pytest.mark.parametrize("samples", [5, 50, 500])
def test_without_a_flip_the_bound_is_as_wide_as_the_samples_are_few(samples):
    """The exact upper end is 1 − 0.05^(1/n), about 3 / n."""
    labels = np.zeros(samples, int)
    same = one_hot(labels)
    drop = paired_drop(Metric("accuracy", False, accuracy), labels, same, same)
    exact = 1 - 0.05 ** (1 / samples)
    assert drop.mean == 0
    assert 0.5 * exact < drop.bound < exact
    assert drop.is_sure(0.01) == (samples == 500)


def test_labels_that_are_no_class_are_refused():
    outputs = np.eye(4, dtype=np.float32)
    with pytest.raises(ValueError, match=r"class numbers from 0 to 3.*labels from 1 to 4"):
        accuracy(np.arange(1, 5), outputs)
    with pytest.raises(ValueError, match="labels from -1 to 2"):
        accuracy(np.arange(-1, 3), outputs)
    np.testing.assert_array_equal(accuracy(np.arange(4), outputs), 1)


def test_a_bound_that_is_narrow_enough_decides():
    metric = Metric("accuracy", False, accuracy)
    labels = np.zeros(5000, int)
    before, after = np.zeros(5000, int), np.r_[np.ones(45, int), np.zeros(4955, int)]
    drop = paired_drop(metric, labels, one_hot(before), one_hot(after))
    assert drop.mean == pytest.approx(0.009)
    assert 0.01 < drop.bound < 0.012
    assert drop.is_sure(0.01)
    assert not drop.holds(0.01)
    assert drop.holds(0.012)
