"""Criteria against their formulas in NumPy, and the registry."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfcompress.pruning.criteria import functions as criteria
from tfcompress.pruning.criteria.registry import (
    Criterion,
    get_criterion,
    get_weight_criterion,
    register_criterion,
)

arrays = hnp.arrays(np.float32, (4, 6), elements=st.floats(-10, 10, width=32))


@given(w=arrays, g=arrays)
def test_formulas(w, g):
    for name, expected in {
        "magnitude": np.abs(w),
        "l1": np.abs(w),
        "l2": w * w,
        "taylor": np.abs(w * g),
        "snip": np.abs(w * g),
        "movement": -w * g,
        "fisher": w * w * g * g / 2,
    }.items():
        scores = get_criterion(name)(kernel=w, gradient=g, seed=(0, 0), activations=None)
        # TensorFlow may flush subnormal products to zero.
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=np.finfo(np.float32).tiny)


def test_random_differs_by_seed_only():
    w = np.ones((50, 50), np.float32)
    random = get_criterion("random")
    first = random(kernel=w, seed=(0, 1))
    np.testing.assert_array_equal(first, random(kernel=w * 3, seed=(0, 1)))
    assert not np.array_equal(first, random(kernel=w, seed=(0, 2)))
    assert 0.45 < first.mean() < 0.55


def test_entropy_equals_a_histogram_of_each_channel():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(500, 1, 3)).astype(np.float32) ** 3
    outputs[:, 0, 1] = 0.25
    h = criteria.channel_entropy(outputs, num_bins=16)
    for channel in (0, 2):
        counts, _ = np.histogram(outputs[:, 0, channel].astype(np.float64), bins=16)
        p = counts[counts > 0] / 500
        assert h[0, channel] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)
    assert h[0, 1] == 0
    kernel = rng.normal(size=(5, 3)).astype(np.float32)
    scores = get_criterion("entropy")(kernel=kernel, activations=outputs)
    np.testing.assert_allclose(scores, np.abs(kernel) * criteria.channel_entropy(outputs))


@given(values=hnp.arrays(np.float32, (20, 3), elements=st.floats(-100, 100, width=32)))
def test_entropy_lies_between_zero_and_that_of_the_uniform_distribution(values):
    h = criteria.channel_entropy(values, num_bins=8)
    assert np.all(h >= -1e-6)
    assert np.all(h <= np.log(8) + 1e-6)


def test_what_a_criterion_needs_is_read_off_its_parameters():
    assert not get_criterion("magnitude").needs_data
    assert get_criterion("taylor").needs_data
    assert get_criterion("entropy").needs_data
    assert get_criterion("movement").accumulate
    assert not get_criterion("movement").needs_data
    assert not get_criterion("magnitude").scores_channels
    assert not get_criterion("batch_norm_scale").needs_data
    assert get_criterion("apoz").needs_data
    assert get_criterion("apoz").scores_channels


def test_a_users_criterion_is_registered_in_one_line():
    register_criterion("signal", lambda kernel, gradient: abs(kernel) * gradient**2)
    assert get_criterion("signal").needs_data
    assert get_criterion("signal")(kernel=np.float32(-2), gradient=np.float32(3)) == 18

    @register_criterion("decorated")
    def decorated(kernel):
        return kernel

    assert get_criterion("decorated").function is decorated
    assert get_criterion(decorated).name == "decorated"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_criterion("magnitud"), "Received: criterion='magnitud'"),
        (lambda: register_criterion("taylor", lambda kernel: kernel), "built-in"),
        (lambda: Criterion("x", lambda worth: worth), r"parameters \('worth',\)"),
        (lambda: Criterion("x", lambda gradient: gradient), "named `kernel`"),
        (lambda: Criterion("x", lambda kernel, scale: kernel), "named `kernel`"),
        (lambda: Criterion("x", lambda scale, nonzero: scale), "named `kernel`"),
        (lambda: get_weight_criterion("apoz"), "'apoz', which scores whole channels"),
        (lambda: register_criterion("apoz", lambda nonzero: nonzero), "built-in"),
        (lambda: Criterion("x", lambda kernel: kernel, accumulate=True), "accumulates"),
    ],
)
def test_bad_criteria_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
