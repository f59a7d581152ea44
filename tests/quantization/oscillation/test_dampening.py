"""The dampening loss beside NumPy, and what it does in training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tests.quantization.oscillation.test_freezing import fit, quantized, rounding

LSQ3 = tfc.WeightScheme(3, quantizer=tfc.LSQ())


def distances(model):
    """(w − ŵ) inside the range of the codes, and the step, of layer "a"."""
    latent = model.get_layer("a").kernel.numpy()
    step = rounding(model).state["step"].numpy()
    codes = np.clip(np.round(latent / step), -3, 3)
    return np.where(np.abs(latent / step) <= 3, latent - codes * step, 0.0), step


def test_loss_and_gradient():
    model = quantized(LSQ3)
    wanted, _ = distances(model)
    kernel = model.get_layer("a").kernel
    with tf.GradientTape() as tape:
        loss = tfc.dampening_loss(model)
    gradient, step = tape.gradient(loss, [kernel.value, rounding(model).state["step"].value])
    np.testing.assert_allclose(gradient, 2 * wanted, atol=1e-6)
    assert step is None
    with tf.GradientTape() as tape:
        tape.gradient(tfc.dampening_loss(model), kernel.value)
    other = distances_of_b(model)
    np.testing.assert_allclose(loss, np.sum(wanted**2) + np.sum(other**2), rtol=1e-4)


def distances_of_b(model):
    latent, step = model.get_layer("b").kernel.numpy(), rounding(model, "b").state["step"].numpy()
    codes = np.clip(np.round(latent / step), -3, 3)
    return np.where(np.abs(latent / step) <= 3, latent - codes * step, 0.0)


def test_the_callback_draws_weights_to_their_codes_and_leaves_regularizers():
    plain, dampened = quantized(LSQ3), quantized(LSQ3)
    inner = dampened.get_layer("a").kernel.regularizer
    fit(plain, [], 4)
    callback = tfc.callbacks.OscillationDampening(10.0)
    fit(dampened, [callback], 4)
    far = [np.mean(np.abs(found / step)) for found, step in map(distances, (plain, dampened))]
    assert far[1] < 0.5 * far[0], far
    assert dampened.get_layer("a").kernel.regularizer is inner
    assert inner is not None
    assert dampened.get_layer("b").kernel.regularizer is None


def test_the_strength_grows_by_a_cosine():
    callback = tfc.callbacks.OscillationDampening(0.2, begin_step=10, end_step=20)
    np.testing.assert_allclose(
        [callback.strength_at(s) for s in (0, 10, 15, 20, 40)], [0, 0, 0.1, 0.2, 0.2]
    )
    assert tfc.callbacks.OscillationDampening(0.2).strength_at(0) == 0.2


def test_what_it_cannot_act_on_is_refused():
    model = quantized(tfc.WeightScheme(3, quantizer=tfc.DoReFaWeights()))
    with pytest.raises(ValueError, match="DoReFaWeights"):
        tfc.callbacks.OscillationDampening().set_model(model)
    for strength in (0.0, "a"):
        with pytest.raises(ValueError, match="strength"):
            tfc.callbacks.OscillationDampening(strength)
    with pytest.raises(ValueError, match="rounded kernels"):
        tfc.dampening_loss(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
