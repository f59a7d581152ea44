"""The maths of uniform quantization, against NumPy and by its properties."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcompress.quantization.fake_quant.affine import (
    MIN_SCALE,
    affine_parameters,
    bounds,
    code_range,
    fake_quantize,
    fake_quantize_tensor,
    round_through,
    round_to_grid,
)

BITS = st.integers(2, 8)
FINITE = st.floats(-1e4, 1e4, width=32)
settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")


def reference(x, scale, zero_point, num_bits, narrow_range, rounding="nearest"):
    """In float64, from the definition."""
    qmin, qmax = code_range(num_bits, narrow_range)
    codes = {"nearest": np.round, "truncate": np.floor}[rounding](np.float64(x) / scale)
    return (np.clip(codes + zero_point, qmin, qmax) - zero_point) * scale


@pytest.mark.parametrize(
    ("num_bits", "narrow", "expected"),
    [(8, False, (-128, 127)), (8, True, (-127, 127)), (4, True, (-7, 7)), (2, False, (-2, 1))],
)
def test_code_range(num_bits, narrow, expected):
    assert code_range(num_bits, narrow) == expected


@given(FINITE, FINITE, BITS, st.booleans(), st.booleans(), st.booleans())
def test_zero_is_exact_and_the_range_is_covered(a, b, bits, symmetric, narrow, power_of_two):
    low, high = min(a, b), max(a, b)
    scale, zero = affine_parameters(
        tf.constant(low),
        tf.constant(high),
        num_bits=bits,
        symmetric=symmetric,
        narrow_range=narrow,
        power_of_two=power_of_two,
    )
    scale, zero = float(scale), float(zero)
    qmin, qmax = code_range(bits, narrow)
    assert scale >= 0.99 * MIN_SCALE
    assert zero == round(zero)
    assert qmin <= zero <= qmax
    assert not symmetric or zero == 0
    if power_of_two:
        assert np.log2(scale) == round(np.log2(scale))
    options = {"num_bits": bits, "narrow_range": narrow}
    assert float(fake_quantize(tf.constant(0.0), scale, zero, **options)) == 0.0
    # Neither end is off by more than half a step (rounding of the zero point included).
    for end in (min(low, 0.0), max(high, 0.0)):
        rounded = float(fake_quantize(tf.constant(np.float32(end)), scale, zero, **options))
        assert abs(rounded - end) <= 0.5001 * scale + 1e-6 * abs(end)
    # With 8 bits a side of 0 that has codes is not clipped at all.
    if bits == 8 and not power_of_two and not symmetric:
        for end, code in ((min(low, 0.0), qmin), (max(high, 0.0), qmax)):
            assert code == zero or abs(end) <= abs(code - zero) * scale * (1 + 1e-6)


def test_pixels_between_minus_one_and_one_do_not_fall_half_way_between_codes():
    scale, zero = affine_parameters(tf.constant(-1.0), tf.constant(1.0))
    pixels = np.arange(256) / 127.5 - 1
    fractions = np.abs(pixels / float(scale) % 1 - 0.5)
    assert float(zero) in (-1, 0)
    assert (fractions < 1e-3).mean() < 0.02


@given(
    st.floats(2.0**-13, 8.0, width=32),
    BITS,
    st.booleans(),
    st.sampled_from(["nearest", "truncate", "stochastic"]),
    st.data(),
)
def test_every_representable_level_reproduces_itself(scale, bits, narrow, rounding, data):
    qmin, qmax = code_range(bits, narrow)
    zero = data.draw(st.integers(qmin, qmax))
    levels = (np.arange(qmin, qmax + 1) - zero).astype(np.float32) * np.float32(scale)
    again = fake_quantize(
        tf.constant(levels),
        np.float32(scale),
        np.float32(zero),
        num_bits=bits,
        narrow_range=narrow,
        rounding=rounding,
        training=False,
    )
    np.testing.assert_array_equal(again, levels)
    if rounding == "nearest":
        options = {"num_bits": bits, "narrow_range": narrow}
        low, high = bounds(tf.constant(np.float32(scale)), np.float32(zero), **options)
        fused = fake_quantize_tensor(tf.constant(levels), low, high, **options)
        np.testing.assert_allclose(fused, levels, rtol=3e-6, atol=scale * 1e-4)


@given(FINITE, FINITE, BITS, st.booleans(), st.integers(0, 2**31))
def test_the_fused_op_and_the_formula_are_the_reference(a, b, bits, narrow, seed):
    low, high = min(a, b, 0.0), max(a, b, 1e-3)
    scale, zero = affine_parameters(
        tf.constant(low), tf.constant(high), num_bits=bits, narrow_range=narrow
    )
    x = np.random.default_rng(seed).uniform(1.5 * low, 1.5 * high, 200).astype(np.float32)
    # Halves may go either way.
    position = x / np.float64(scale)
    x = x[np.abs(position - np.floor(position) - 0.5) > 1e-3]
    expected = reference(x, float(scale), float(zero), bits, narrow)
    options = {"num_bits": bits, "narrow_range": narrow}
    plain = fake_quantize(tf.constant(x), scale, zero, **options)
    fused = fake_quantize_tensor(tf.constant(x), *bounds(scale, zero, **options), **options)
    for result in (plain, fused):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=float(scale) * 1e-3)


@pytest.mark.parametrize("rounding", ["nearest", "truncate", "stochastic"])
def test_the_gradient_is_one_inside_and_zero_outside(rounding):
    x = tf.constant([-3.0, -1.29, -1.27, 0.0, 0.555, 1.26, 1.28, 9.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = fake_quantize(x, 0.01, 0.0, rounding=rounding, training=True)
        fused = fake_quantize_tensor(x, *bounds(tf.constant(0.01), tf.constant(0.0)))
    inside = [0, 0, 1, 1, 1, 1, 0, 0]
    np.testing.assert_array_equal(tape.gradient(y, x), inside)
    np.testing.assert_array_equal(tape.gradient(fused, x), inside)


def test_truncation_goes_down():
    x = np.float32([-0.35, -0.3, 0.35, 0.39])
    y = fake_quantize(tf.constant(x), 0.1, rounding="truncate")
    np.testing.assert_allclose(y, [-0.4, -0.3, 0.3, 0.3], rtol=1e-6)


def test_stochastic_rounding_is_unbiased_in_training_and_nearest_in_inference():
    x = tf.fill([200_000], 0.33)
    y = fake_quantize(x, 0.1, rounding="stochastic", training=True).numpy()
    assert set(np.round(y / 0.1).astype(int)) == {3, 4}
    # Four standard deviations of the mean of so many draws.
    assert abs(y.mean() - 0.33) < 4 * 0.1 * np.sqrt(0.3 * 0.7 / len(y))
    still = fake_quantize(x, 0.1, rounding="stochastic", training=False)
    np.testing.assert_array_equal(still, np.full(len(y), np.float32(0.3) * 1, np.float32))


def test_stochastic_rounding_never_leaves_the_codes(monkeypatch):
    # 127 + 0.99999994 is 128 in float32.
    largest = np.nextafter(np.float32(1), np.float32(0))
    monkeypatch.setattr(tf.random, "uniform", lambda shape: tf.fill(shape, largest))
    x = tf.constant([127.0, 126.5, 500.0])
    y = fake_quantize(x, 1.0, rounding="stochastic", training=True)
    np.testing.assert_array_equal(y, [127.0, 127.0, 127.0])


def test_round_through_passes_gradients():
    x = tf.constant([0.2, 1.7])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = round_through(x)
    np.testing.assert_array_equal(y, [0.0, 2.0])
    np.testing.assert_array_equal(tape.gradient(y, x), [1.0, 1.0])


def test_power_of_two_rounds_up_and_keeps_an_exact_power():
    for high, expected in ((127 / 128, 2.0**-7), (127 / 128 * 1.01, 2.0**-6), (127.0, 1.0)):
        scale, _ = affine_parameters(-high, high, symmetric=True, power_of_two=True)
        assert float(scale) == expected


def test_round_to_grid():
    x = tf.constant([0.26, -0.26, 3.0, 1e20])
    step = tf.constant([0.1, 0.1, 0.0, 1e-3])
    y = round_to_grid(x, step).numpy()
    np.testing.assert_allclose(y[:2], [0.3, -0.3], rtol=1e-6)
    # No grid known: unchanged. Beyond int32: clipped.
    assert y[2] == 3.0
    assert y[3] == pytest.approx(2.0**31 * 1e-3, rel=1e-6)
