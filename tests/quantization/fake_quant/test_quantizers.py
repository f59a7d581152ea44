"""The quantizer of an activation: its range, its codes, its state."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.observers import LeastSquares, MinMax, MovingAverage
from tfcompress.quantization.schemes import ActivationScheme


def make(**options):
    fixed = options.pop("fixed_range", None)
    quantizer = FakeQuantize(ActivationScheme(**options), fixed_range=fixed)
    quantizer.build((None, 4))
    return quantizer


def batch(*values):
    return tf.constant(np.float32(values))[None]


def test_without_a_range_the_tensor_passes_and_the_first_training_batch_gives_one():
    quantizer = make()
    x = batch(-0.52, 0.1, 0.3, 0.52)
    np.testing.assert_array_equal(quantizer(x, training=False), x)
    y = quantizer(x, training=True)
    # A true ±0.52 is ±0.52 at once.
    assert quantizer.range == pytest.approx((-0.52, 0.52), abs=0.52 / 127)
    assert 0 < np.abs(y - x).max() <= float(quantizer.scale) / 2 * 1.001


def test_the_moving_average_is_debiased():
    quantizer = make(observer=MovingAverage(0.9))
    random = np.random.default_rng(0)
    lows, highs, weights = [], [], []
    for _ in range(20):
        x = random.normal(size=(1, 50)).astype(np.float32)
        quantizer(x, training=True)
        weights = [w * 0.9 for w in weights] + [0.1]
        lows.append(x.min())
        highs.append(x.max())
        expected = np.average(lows, weights=weights), np.average(highs, weights=weights)
        scale, zero = quantizer.parameters_of(*expected)
        assert float(quantizer.scale) == pytest.approx(scale, rel=1e-5)
        assert float(quantizer.zero_point) == pytest.approx(zero, abs=1)


def test_min_max_only_widens():
    quantizer = make(observer=MinMax())
    for values in ((-1, 2), (-0.1, 0.1), (-3, 1)):
        quantizer(batch(*values), training=True)
    assert quantizer.range == pytest.approx((-3, 2), abs=5 / 255)


def test_a_set_range_goes_on_moving_from_there_with_a_momentum():
    quantizer = make(observer=MovingAverage(0.99))
    quantizer.set_range(-1.0, 1.0)
    assert quantizer.range == pytest.approx((-1, 1), abs=1 / 127)
    quantizer(batch(-2.0, 2.0), training=True)
    assert quantizer.range[1] == pytest.approx(1.01, abs=0.01)


def test_an_estimator_of_the_whole_distribution_stays_after_its_first_range():
    quantizer = make(observer=LeastSquares())
    quantizer(batch(-1.0, 1.0), training=True)
    before = quantizer.range
    quantizer(batch(-9.0, 9.0), training=True)
    assert quantizer.range == before
    assert not quantizer.has_moving_range


@pytest.mark.parametrize("value", [0.0, 0.25, -7.0, 1e-12])
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"num_bits": 2}])
def test_a_constant_activation(value, options):
    quantizer = make(**options)
    x = tf.fill((2, 4), np.float32(value))
    y = quantizer(x, training=True)
    assert np.isfinite(y).all()
    assert np.abs(y - x).max() <= 0.01 * abs(value) + 1e-9
    assert float(quantizer.scale) > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_batch_with_no_finite_range_does_not_spoil_it(bad):
    quantizer = make()
    quantizer(batch(-1.0, 1.0), training=True)
    before = quantizer.range
    quantizer(batch(bad, 0.5), training=True)
    assert quantizer.range == before
    fresh = make()
    fresh(batch(bad, 0.5), training=True)
    fresh(batch(-1.0, 1.0), training=True)
    assert fresh.range == pytest.approx((-1, 1), abs=1 / 127)


def test_an_empty_batch_does_not_spoil_the_range():
    quantizer = make()
    quantizer(batch(-1.0, 1.0), training=True)
    before = quantizer.range
    quantizer(tf.zeros((0, 4)), training=True)
    assert quantizer.range == before


def test_a_fixed_range_is_what_litert_prescribes_and_never_moves():
    sigmoid = make(fixed_range=(0.0, 255 / 256))
    assert float(sigmoid.scale) == 1 / 256
    assert float(sigmoid.zero_point) == -128
    tanh = make(fixed_range=(-1.0, 127 / 128))
    assert float(tanh.scale) == 1 / 128
    assert float(tanh.zero_point) == 0
    tanh(batch(-9.0, 9.0), training=True)
    assert float(tanh.scale) == 1 / 128
    with pytest.raises(ValueError, match="whose range can be set"):
        tanh.set_range(0, 1)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (np.nan, 1.0), (0.0, np.inf)])
def test_set_range_refuses_what_is_no_interval(bounds):
    with pytest.raises(ValueError, match="finite low ≤ high"):
        make().set_range(*bounds)


def test_frozen_and_disabled():
    quantizer = make()
    quantizer.set_range(-1.0, 1.0)
    quantizer.frozen.assign(1.0)
    quantizer(batch(-5.0, 5.0), training=True)
    assert quantizer.range[1] == pytest.approx(1.0, abs=1 / 127)
    quantizer.enabled.assign(0.0)
    x = batch(0.123456, 3.0)
    np.testing.assert_array_equal(quantizer(x), x)
    assert float(quantizer.active_scale()) == 0.0
    quantizer.enabled.assign(1.0)
    assert float(quantizer(x)[0, 1]) == pytest.approx(1.0, abs=1 / 127)


def test_a_layer_that_is_not_trainable_keeps_its_range():
    quantizer = make()
    quantizer.set_range(-1.0, 1.0)
    quantizer.trainable = False
    quantizer(batch(-5.0, 5.0), training=True)
    assert quantizer.range[1] == pytest.approx(1.0, abs=1 / 127)


@pytest.mark.parametrize(
    "options", [{}, {"rounding": "truncate"}, {"power_of_two": True}, {"num_bits": 4}], ids=str
)
def test_the_gradient_is_cut_where_values_are_clipped(options):
    quantizer = make(**options)
    quantizer.set_range(-1.0, 1.0)
    x = batch(-5.0, -0.5, 0.5, 5.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x, training=False)
    np.testing.assert_array_equal(tape.gradient(y, x), [[0, 1, 1, 0]])
    quantizer.enabled.assign(0.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x, training=False)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(tape.gradient(y, x), [[1, 1, 1, 1]])


def test_it_computes_in_float32_under_any_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        quantizer = FakeQuantize()
    finally:
        keras.config.set_dtype_policy("float32")
    assert quantizer(tf.zeros((2, 2), tf.bfloat16)).dtype == tf.float32
