"""Quantized gradients: on their grid, and without bias."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfcompress as tfc
from tfcompress.quantization.gradients.backward import with_quantized_gradient
from tfcompress.quantization.gradients.rounding import dorefa, uniform

GRADIENT = np.random.default_rng(0).normal(0, 1, (8, 5)).astype(np.float32)


def test_uniform_is_the_nearest_multiple():
    size = np.abs(GRADIENT).max()
    found = uniform(tf.constant(GRADIENT), tf.constant(size), 7, None)
    np.testing.assert_allclose(found, np.round(GRADIENT / size * 7) * size / 7, atol=1e-6)
    assert not np.any(uniform(tf.zeros((3,)), tf.zeros(()), 7, tf.random.uniform((3,))))


def test_dorefa_is_equation_12():
    size = np.abs(GRADIENT).max()
    noise = np.random.default_rng(1).uniform(0, 1, GRADIENT.shape).astype(np.float32)
    found = dorefa(tf.constant(GRADIENT), tf.constant(size), 3, tf.constant(noise))
    unit = GRADIENT / (2 * size) + 0.5 + (noise - 0.5) / 7
    expected = 2 * size * (np.clip(np.round(unit * 7), 0, 7) / 7 - 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    value=st.floats(-1, 1, width=32),
    levels=st.integers(1, 127),
    form=st.sampled_from(["uniform", "dorefa"]),
)
def test_the_mean_of_stochastic_rounding_is_the_value(value, levels, form):
    # Evenly spread noise in place of random numbers: the mean is exact to one part in its count.
    count = 4096
    noise = (tf.range(count, dtype=tf.float32) + 0.5) / count
    x = tf.fill((count,), tf.constant(value, tf.float32))
    if form == "uniform":
        step, found = 1 / levels, uniform(x, tf.constant(1.0), levels, noise)
    else:
        bits = levels % 8 + 1
        step, found = 2 / (2**bits - 1), dorefa(x, tf.constant(1.0), bits, noise)
        # The two outermost half steps are cut off.
        if abs(value) > 1 - step / 2:
            return
    assert float(tf.reduce_mean(found)) == pytest.approx(value, abs=2 * step / count + 1e-6)
    assert len(np.unique(found)) <= 2


def test_the_backward_pass_has_a_scale_for_each_sample():
    x = tf.Variable(tf.zeros((8, 5)))
    scheme = tfc.GradientScheme(3, "nearest")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(with_quantized_gradient(x.value(), scheme) * GRADIENT)
    size = np.abs(GRADIENT).max(1, keepdims=True)
    expected = 2 * size * (np.round(7 * (GRADIENT / (2 * size) + 0.5)) / 7 - 0.5)
    np.testing.assert_allclose(tape.gradient(loss, x), expected, atol=1e-6)


@pytest.mark.parametrize("arguments", [(0,), (17,), (2.5,), (4, "truncate")])
def test_schemes_are_checked(arguments):
    with pytest.raises(ValueError, match="Expected"):
        tfc.GradientScheme(*arguments)
