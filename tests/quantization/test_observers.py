"""Range estimators, against NumPy."""

import dataclasses

import numpy as np
import pytest
from keras.saving import deserialize_keras_object, serialize_keras_object

from tfcompress.quantization.observers import (
    LeastSquares,
    MeanStd,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
)

BUILT_IN = (MinMax, MovingAverage, Percentile, MeanStd, LeastSquares)

VALUES = np.random.default_rng(0).normal(0.5, 1.0, 20_000)


def squared_error(values, low, high, levels):
    scale = (high - low) / levels
    rounded = np.round(np.clip(values, low, high) / scale) * scale
    return np.mean((values - rounded) ** 2)


def test_min_max():
    assert MinMax().estimate(VALUES, 255, False) == (VALUES.min(), VALUES.max())


@pytest.mark.parametrize("percentile", [99.0, 99.9, 100.0])
def test_percentile_cuts_its_share_at_each_end(percentile):
    low, high = Percentile(percentile).estimate(VALUES, 255, False)
    share = 1 - percentile / 100
    assert np.mean(low > VALUES) == pytest.approx(share, abs=2 / len(VALUES))
    assert np.mean(high < VALUES) == pytest.approx(share, abs=2 / len(VALUES))
    low, high = Percentile(percentile).estimate(VALUES, 254, True)
    assert low == -high
    assert np.mean(np.abs(VALUES) > high) == pytest.approx(share, abs=2 / len(VALUES))


def test_mean_std_is_never_wider_than_what_was_seen():
    low, high = MeanStd(2.0).estimate(VALUES, 255, False)
    assert (low, high) == pytest.approx((VALUES.mean() - 2 * VALUES.std(), high))
    assert high == pytest.approx(VALUES.mean() + 2 * VALUES.std())
    assert MeanStd(50.0).estimate(VALUES, 255, False) == (VALUES.min(), VALUES.max())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("levels", [3, 15, 255])
def test_least_squares_beats_the_full_range_and_every_other_candidate(levels, symmetric):
    low, high = LeastSquares().estimate(VALUES, levels, symmetric)
    full = (VALUES.min(), VALUES.max())
    if symmetric:
        assert low == -high
        full = (-np.abs(VALUES).max(), np.abs(VALUES).max())
    best = squared_error(VALUES, low, high, levels)
    for factor in (1.0, 0.9, 0.7, 0.5, 0.3):
        assert best <= squared_error(VALUES, full[0] * factor, full[1] * factor, levels) * 1.02
    if levels == 3:
        # With few codes it pays to clip.
        assert high < 0.8 * full[1]


def test_least_squares_keeps_a_bound_at_zero():
    low, _ = LeastSquares().estimate(np.maximum(VALUES, 0), 255, False)
    assert low == 0.0


@pytest.mark.parametrize(
    "observer", [MinMax(), MovingAverage(0.9), Percentile(), MeanStd(), LeastSquares(10)]
)
@pytest.mark.parametrize("values", [np.zeros(7), np.full(7, 0.25), np.full(7, -3.0)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_constant_values_give_a_finite_range_that_holds_them(observer, values, symmetric):
    low, high = observer.estimate(values, 255, symmetric)
    assert np.isfinite([low, high]).all()
    assert min(low, 0) - 1e-6 <= values[0] <= max(high, 0) + 1e-6


def test_which_ones_move_during_training():
    assert [cls for cls in BUILT_IN if cls().every_batch] == [MinMax, MovingAverage]
    assert not Observer().every_batch


@pytest.mark.parametrize(
    "observer", [MinMax(), MovingAverage(0.5), Percentile(99.0), MeanStd(3.0), LeastSquares(7)]
)
def test_config(observer):
    again = deserialize_keras_object(serialize_keras_object(observer))
    assert again == observer
    assert type(again) is type(observer)
    with pytest.raises(dataclasses.FrozenInstanceError):
        observer.momentum = 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MovingAverage(1.0), r"`momentum` in \[0, 1\). Received: 1.0"),
        (lambda: MovingAverage(-0.1), "`momentum`"),
        (lambda: Percentile(50.0), r"`percentile` in \(50, 100\]. Received: 50.0"),
        (lambda: Percentile(100.1), "`percentile`"),
        (lambda: MeanStd(0.0), "`num_std` > 0. Received: 0.0"),
        (lambda: LeastSquares(0), "`num_candidates` ≥ 1. Received: 0"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
