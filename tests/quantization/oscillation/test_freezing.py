"""Weights held at their codes: which, at what value, and that nothing moves them again."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.fake_quant.held_weights import FREE
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights

IMAGES = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
LABELS = np.arange(64) % 3


def quantized(scheme, preserved=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,), name="x"),
            layers.Dense(8, "relu", name="a", kernel_regularizer="l2"),
            layers.Dense(3, name="b"),
        ]
    )
    if preserved is not None:
        model.layers[0].kernel.assign(model.layers[0].kernel * preserved)
    model = tfc.quantize(model, tfc.Scheme(scheme), calibration_data=IMAGES)
    compile_(model)
    return model


def compile_(model, rate=0.02):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)


def fit(model, callbacks, epochs=1):
    model.fit(IMAGES, LABELS, batch_size=8, epochs=epochs, verbose=0, callbacks=callbacks)


def rounding(model, name="a"):
    return model.get_layer(name).transformed.of_type(FakeQuantizeWeights)["kernel"]


def codes(model, name="a"):
    transform = rounding(model, name)
    latent = tf.convert_to_tensor(model.get_layer(name).kernel)
    _, scale = transform.scheme.quantizer.quantize(latent, transform.state, transform.grid, False)
    values = model.get_layer(name).effective_weights()["kernel"]
    return np.round(np.asarray(values / scale)).astype(int)


POWERS = tfc.WeightScheme(4, quantizer=tfc.PowerOfTwoWeights(fixed_scale=True))


def test_incremental_freezing_holds_the_largest_weights_first(tmp_path, converter):
    model = quantized(POWERS)
    latent, before = np.abs(model.get_layer("a").kernel.numpy()), codes(model)
    callback = tfc.callbacks.IncrementalFreezing({0: 0.5, 8: 0.75, 16: 1.0})
    fit(model, [callback])
    held = rounding(model).held.codes.numpy()
    assert np.count_nonzero(held != FREE) == 24
    assert callback.held_share == pytest.approx((24 + 12) / 72)
    assert latent[held != FREE].min() >= latent[held == FREE].max()
    np.testing.assert_array_equal(held[held != FREE], before[held != FREE])
    np.testing.assert_array_equal(codes(model)[held != FREE], before[held != FREE])
    first = held.copy()
    fit(model, [callback], 2)
    held = rounding(model).held.codes.numpy()
    assert (held != FREE).all()
    np.testing.assert_array_equal(held[first != FREE], first[first != FREE])
    assert set(np.abs(held).ravel()) <= {0, 1, 2, 4, 8}
    # What is held is saved, stays in training without the callback, and is in the file.
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", compile=False)
    compile_(loaded)
    fit(loaded, [], 2)
    np.testing.assert_array_equal(codes(loaded), held)
    report = tfc.export_tflite(loaded, tmp_path / "m.tflite", verify_data=IMAGES)
    assert report.agreement == 1.0
    out = tfc.Runner(tmp_path / "m.tflite").predict(IMAGES)
    np.testing.assert_allclose(next(iter(out.values())), loaded(IMAGES), atol=1e-5)


def test_free_weights_train_in_float_until_all_are_held():
    model = quantized(POWERS)
    callback = tfc.callbacks.IncrementalFreezing({0: 0.5, 100: 1.0})
    fit(model, [callback])
    callback.set_model(model)
    callback.update(8)
    transformed, held = model.get_layer("a").transformed, rounding(model).held.codes.numpy()
    values = transformed(training=True)[0]["kernel"].numpy()
    latent = model.get_layer("a").kernel.numpy()
    np.testing.assert_array_equal(values[held == FREE], latent[held == FREE])
    callback.on_train_end()
    rounded = transformed(training=True)[0]["kernel"].numpy()
    assert np.abs(rounded[held == FREE] - latent[held == FREE]).max() > 1e-3


def reference(history, momentum, threshold):
    """Algorithm 1 of the paper for one weight: the code that it is held at and when."""
    frequency, mean, last = 0.0, history[0], 0
    for step, (old, new) in enumerate(itertools.pairwise(history)):
        direction = np.sign(new - old)
        swings = direction != 0 and direction == -last
        frequency += momentum * (swings - frequency)
        mean += momentum * (new - mean)
        last = direction or last
        if frequency > threshold:
            return step, int(np.round(mean))
    return None


def test_iterative_freezing_follows_the_algorithm():
    """One weight swings between 2 and 3, mostly at 3; one walks up; one rests."""
    model = quantized(tfc.WeightScheme(4, quantizer=tfc.LSQ()))
    callback = tfc.callbacks.IterativeFreezing(0.1, initial_threshold=0.1, momentum=0.1)
    transform, kernel = rounding(model), model.get_layer("a").kernel
    step = transform.state["step"].numpy()
    swinging = [3, 2, 3, 3, 3, 2, 3, 3, 3, 2, 3, 3, 3]
    walking = [-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 7]

    def assign(i):
        wanted = np.zeros((6, 8), np.float32)
        wanted[0], wanted[1], wanted[2] = swinging[i], walking[i], 5
        kernel.assign(wanted * step)

    assign(0)
    callback.set_model(model)
    held_at, held = None, None
    for i in range(1, len(swinging)):
        assign(i)
        callback.update(i)
        held = transform.held.codes.numpy()
        if held_at is None and held[0, 0] != FREE:
            held_at = i - 1, int(held[0, 0])
    assert held_at == reference(swinging, 0.1, 0.1)
    assert held_at[1] == 3
    assert reference(walking, 0.1, 0.1) is None
    assert (held[1:3] == FREE).all()
    # The latent value follows, so that nothing depends on where the weight was held.
    np.testing.assert_allclose(kernel.numpy()[0], 3 * step[0], rtol=1e-6)


def test_held_weights_get_no_gradient_and_their_step_does():
    model = quantized(tfc.WeightScheme(4, quantizer=tfc.LSQ()))
    transform, layer = rounding(model), model.get_layer("a")
    transform.allow_holding()
    held = np.full((6, 8), FREE, np.int8)
    held[0] = 4
    transform.held.codes.assign(held)
    with tf.GradientTape() as tape:
        values = layer.transformed(training=True)[0]["kernel"]
        loss = tf.reduce_sum(values[0])
    by_kernel, by_step = tape.gradient(loss, [layer.kernel.value, transform.state["step"].value])
    np.testing.assert_allclose(values[0], 4 * transform.state["step"].numpy()[0], rtol=1e-6)
    assert not np.any(by_kernel)
    # Times the scale of LSQ's gradient, 1 / √(weights of a channel · largest code).
    np.testing.assert_allclose(by_step[0], np.full(8, 4 / np.sqrt(6 * 7)), rtol=1e-5)


def test_pruned_weights_stay_zero():
    mask = (np.arange(48).reshape(6, 8) % 2).astype(np.float32)
    model = quantized(POWERS, mask)
    fit(model, [tfc.callbacks.IncrementalFreezing({0: 1.0})])
    found = model.get_layer("a").effective_weights()["kernel"].numpy()
    np.testing.assert_array_equal(found != 0, mask != 0)


def test_the_threshold_falls_by_a_cosine():
    callback = tfc.callbacks.IterativeFreezing(
        0.01, initial_threshold=0.03, begin_step=10, end_step=20
    )
    found = [callback.threshold_at(step) for step in (9, 10, 15, 20, 30)]
    np.testing.assert_allclose(found, [np.inf, 0.03, 0.02, 0.01, 0.01])


@pytest.mark.parametrize("shares", [{}, {0: 0.5}, {5: 0.5, 0: 1.0}, {0: 0.75, 5: 0.5, 9: 1.0}])
def test_wrong_shares(shares):
    with pytest.raises(ValueError, match="shares"):
        tfc.callbacks.IncrementalFreezing(shares)


def test_levels_that_move_are_refused():
    callback = tfc.callbacks.IterativeFreezing()
    with pytest.raises(ValueError, match="TrainedTernary"):
        callback.set_model(quantized(tfc.WeightScheme(2, quantizer=tfc.TrainedTernary())))
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="rounded kernels"):
        callback.set_model(plain)
    with pytest.raises(ValueError, match="threshold"):
        tfc.callbacks.IterativeFreezing(0.1, initial_threshold=0.05)


@pytest.mark.parametrize("shares", [[0.5, 1.0], {0: "a", 1: 1.0}, {0.5: 0.5, 2: 1.0}, {}, {0: 0.5}])
def test_wrong_shares_are_named(shares):
    with pytest.raises(ValueError, match=r"Expected `shares` as \{step: share\}"):
        tfc.callbacks.IncrementalFreezing(shares)
