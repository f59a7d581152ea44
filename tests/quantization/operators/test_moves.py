"""Operators that move, choose, clip or reduce: their parts compute what Keras does, and train."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc

_MASK = np.arange(36).reshape(6, 6, 1) % 2 > 0
# Name → a call that is decomposed, or replaced by a layer of ours.
PARTS = {
    "clip": lambda x: ops.clip(x, -0.25, 0.5),
    "clip_positive": lambda x: ops.clip(x, 0, 0.5),
    "clip_relu": lambda x: ops.clip(x, 0, np.inf),
    "maximum": lambda x: ops.maximum(-0.5, x),
    "minimum": lambda x: ops.minimum(x, np.float32(0.5)),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=0.5),
    "where": lambda x: ops.where(_MASK, x, 0.5),
    "where_not": lambda x: ops.where(_MASK, np.ones((6, 1), "float32"), x),
    "average": lambda x: ops.average_pool(x, 2, 1, "same"),
    "adaptive": lambda x: layers.AdaptiveAveragePooling2D((4, 5))(x),
    "adaptive_even": lambda x: layers.AdaptiveAveragePooling2D((3, 2))(x),
    "adaptive1d": lambda x: layers.AdaptiveAveragePooling1D(7)(layers.Reshape((18, 4))(x)),
    "resize": lambda x: ops.image.resize(x, (4, 9)),
    "resizing": lambda x: layers.Resizing(9, 5)(x),
    "volume": lambda x: layers.AveragePooling3D(2, 1)(layers.Reshape((3, 6, 2, 2))(x)),
    "volume_same": lambda x: layers.AveragePooling3D(3, 2, "same")(layers.Reshape((3, 6, 2, 2))(x)),
}


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((6, 6, 2))
    return keras.Model(inputs, {name: call(inputs) for name, call in PARTS.items()})


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(0, 0.5, (8, 6, 6, 2)).astype(np.float32)


def test_parts_are_what_keras_computes(model, images):
    # Without data no range is known, and tensors pass unrounded.
    quantized = tfc.quantize(model)
    assert not quantized.plan.float_layers
    found, expected = quantized(images), model(images)
    # Factors at the border are rounded to 8 bits.
    coarse = {"average": 0.02, "volume_same": 0.05}
    for name in PARTS:
        np.testing.assert_allclose(found[name], expected[name], atol=coarse.get(name, 1e-5))


def test_codes_are_close_to_the_values(model, images, tmp_path):
    quantized = tfc.quantize(model, calibration_data=images)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    found, expected, again = quantized(images), model(images), loaded(images)
    for name in PARTS:
        np.testing.assert_array_equal(found[name], again[name])
        np.testing.assert_allclose(found[name], expected[name], atol=0.07)
        assert len(np.unique(found[name])) > 20
    plain = tfc.strip(quantized)
    assert not [layer.name for layer in plain.layers if "tfcompress" in type(layer).__module__]
    for name, value in plain(images).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)


def test_gradients_pass_where_nothing_is_clipped_or_filled(images):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(2, 1, name="conv", kernel_initializer="ones")
    calls = ("clip", "pad", "where", "adaptive", "resizing", "volume")
    outputs = [layers.Flatten()(PARTS[name](x(inputs))) for name in calls]
    model = tfc.quantize(keras.Model(inputs, outputs), calibration_data=images)
    before = model.get_layer("conv").kernel.numpy()
    model.compile("sgd", ["mse"] * len(calls), run_eagerly=True)
    targets = [np.zeros((8, *y.shape[1:]), np.float32) for y in model.outputs]
    model.fit(images, targets, batch_size=8, verbose=0)
    after = model.get_layer("conv").kernel.numpy()
    assert np.isfinite(after).all()
    assert (after != before).all()


# Each works along the axis of the samples, which a file of batch 1 has not.
ACROSS = [
    lambda x: ops.sum(x),
    lambda x: ops.mean(x, axis=0),
    lambda x: ops.max(x, axis=(0, 1), keepdims=True),
    lambda x: ops.flip(x),
    lambda x: ops.roll(x, 1),
    lambda x: ops.roll(x, 1, axis=0),
    lambda x: ops.tile(x, (2, 1, 1, 1)),
    lambda x: ops.repeat(x, 2, axis=0),
    lambda x: ops.take(x, [0, 0], axis=0),
    lambda x: ops.swapaxes(x, 0, 1),
    lambda x: ops.pad(x, 1),
    lambda x: ops.stack([x, -1.0 * x]),
    lambda x: ops.concatenate([x, -1.0 * x], axis=0),
    lambda x: ops.reshape(x, (-1, 2)),
    lambda x: layers.Concatenate(axis=0)([x, -1.0 * x]),
    lambda x: ops.softmax(x, axis=0),
    lambda x: ops.log_softmax(x, axis=-4),
    lambda x: layers.Softmax(axis=0)(x),
]


def test_what_works_across_samples_stays_in_float():
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, [call(layers.Conv2D(2, 1)(inputs)) for call in ACROSS])
    reasons = tfc.plan(model).float_layers
    across = [reason for reason in reasons.values() if "across the samples" in reason]
    assert len(across) == len(ACROSS), reasons


def test_what_has_no_int8_form_says_why():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(2, 1)(inputs)
    calls = {
        "aspect ratio": layers.Resizing(3, 4, crop_to_aspect_ratio=True)(x),
        "constant of another shape": ops.where(np.ones((3, 1, 6, 6, 2), bool), x, 0.0),
    }
    reasons = " ".join(tfc.plan(keras.Model(inputs, list(calls.values()))).float_layers.values())
    assert not [word for word in calls if word not in reasons], reasons
