"""Activation quantizers beside NumPy: parameters, rounding, gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize

VALUES = np.random.default_rng(0).uniform(-0.5, 3.0, (16, 20)).astype(np.float32)
POSITIVE = np.abs(VALUES)


def quantizer(scheme, low, high):
    layer = FakeQuantize(scheme)
    layer.build((None, 20))
    layer.set_range(low, high)
    return layer


def gradients(layer, x):
    """Gradients of Σ x̂ to the tensor and to the variables by name."""
    x = tf.Variable(x)
    names = list(layer.state)
    with tf.GradientTape() as tape:
        out = layer.quantizer.quantize(x.value(), *layer.parameters(), layer.scheme, True)
        loss = tf.reduce_sum(out)
    found = tape.gradient(loss, [x, *(layer.state[n].value for n in names)])
    return np.asarray(out), np.asarray(found[0]), dict(zip(names, found[1:], strict=True))


def test_lsq_plus_learns_step_and_offset():
    scheme = tfc.ActivationScheme(4, quantizer=tfc.LSQPlus())
    layer = quantizer(scheme, -0.25, 2.0)
    step, zero = (float(p) for p in layer.parameters())
    # 15 steps of 0.15; −0.25 / 0.15 is 1.67 steps below 0, which rounding makes 2.
    assert step == pytest.approx(0.15)
    assert zero == -8 + 2
    out, to_x, to_state = gradients(layer, VALUES)
    codes = VALUES / step
    inside = (codes > -2) & (codes < 13)
    np.testing.assert_allclose(out, np.round(np.clip(codes, -2, 13)) * step, atol=1e-6)
    np.testing.assert_array_equal(to_x, inside)
    factor = 1 / np.sqrt(20 * 15)
    # Outside, a value is offset + code · step (Bhalgat et al. 2020, eq. 4 and 5).
    slope = np.where(inside, np.round(codes) - codes, np.where(codes < 0, 0, 15))
    assert float(to_state["step"]) == pytest.approx(float(slope.sum() * factor), rel=1e-3)
    assert float(to_state["offset"]) == pytest.approx(float((~inside).sum() * factor), rel=1e-3)


def test_lsq_is_lsq_plus_without_an_offset():
    scheme = tfc.ActivationScheme(8, symmetric=True, quantizer=tfc.LSQPlus())
    layer = quantizer(scheme, -1.0, 2.0)
    assert list(layer.state) == ["step"]
    assert float(layer.zero_point) == 0


def test_pact_has_a_gradient_to_its_ceiling_alone_from_there_on():
    scheme = tfc.ActivationScheme(4, quantizer=tfc.PACT())
    layer = quantizer(scheme, 0.0, 2.0)
    assert float(layer.scale) == pytest.approx(2 / 15)
    assert float(layer.zero_point) == 112
    out, to_x, to_state = gradients(layer, POSITIVE)
    np.testing.assert_allclose(out, np.round(np.clip(POSITIVE, 0, 2) * 7.5) / 7.5, atol=1e-6)
    np.testing.assert_array_equal(to_x, POSITIVE < 2)
    assert float(to_state["alpha"]) == pytest.approx((POSITIVE >= 2).sum())
    # The penalty λ · α².
    assert float(layer.losses[0]) == pytest.approx(2e-4 * 4)
    assert not quantizer(tfc.ActivationScheme(quantizer=tfc.PACT(0.0)), 0.0, 1.0).losses


def test_dorefa_has_a_fixed_range():
    layer = quantizer(tfc.ActivationScheme(2, quantizer=tfc.DoReFaActivations()), 0.0, 7.0)
    assert layer.range == pytest.approx((0.0, 1.0))
    out, to_x, _ = gradients(layer, POSITIVE)
    np.testing.assert_allclose(out, np.round(3 * np.clip(POSITIVE, 0, 1)) / 3, atol=1e-6)
    np.testing.assert_array_equal(to_x, POSITIVE < 1)


@pytest.mark.parametrize("cls", [tfc.PACT, tfc.DoReFaActivations])
def test_a_tensor_with_negative_values_is_refused_at_calibration(cls):
    model = keras.Sequential([keras.Input((20,)), layers.Dense(4, name="d"), layers.ReLU()])
    scheme = tfc.Scheme(activations=tfc.ActivationScheme(quantizer=cls()))
    with pytest.raises(ValueError, match="never negative"):
        tfc.quantize(model, scheme, calibration_data=VALUES)
    config = tfc.QuantizationConfig(by_type={"ReLU": scheme})
    model = tfc.quantize(model, config, calibration_data=VALUES)
    assert sum(type(q.quantizer) is cls for q in model.layers if isinstance(q, FakeQuantize)) == 1


def test_options_that_it_cannot_follow_are_refused():
    for quantizer, option in (
        (tfc.LSQPlus(), {"power_of_two": True}),
        (tfc.PACT(), {"symmetric": True}),
        (tfc.DoReFaActivations(), {"rounding": "stochastic"}),
    ):
        with pytest.raises(ValueError, match=next(iter(option))):
            tfc.ActivationScheme(quantizer=quantizer, **option)
    with pytest.raises(ValueError, match="decay"):
        tfc.PACT(-1.0)
    with pytest.raises(ValueError, match="limit"):
        tfc.DoReFaActivations(0.0)
