"""Cross-layer equalization: the function stays, channel ranges become even, ReLU6 is respected."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.calibration.equalization import equalize

PER_TENSOR = tfc.Scheme(weights=tfc.WeightScheme(per_channel=False))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(0, 1, (32, 8, 8, 3)).astype(np.float32)


def uneven(*activations):
    """Kernels with a batch norm and a ReLU6 each, whose channels differ by a factor of 100."""
    keras.utils.set_random_seed(0)
    stack = [keras.Input((8, 8, 3))]
    for i, activation in enumerate(activations):
        stack += [layers.Conv2D(8, 3, padding="same", name=f"conv{i}")]
        stack += [layers.BatchNormalization(name=f"norm{i}"), activation]
    model = keras.Sequential([*stack, layers.GlobalAveragePooling2D(), layers.Dense(4)])
    factors = np.geomspace(0.03, 3.0, 8).astype(np.float32)
    for i in range(len(activations)):
        model.get_layer(f"norm{i}").gamma.assign(factors)
        if i:
            kernel = model.get_layer(f"conv{i}").kernel
            kernel.assign(kernel.numpy() / factors[:, None] / 4)
    return model


def spread(layer):
    sizes = np.abs(layer.kernel.numpy()).max((0, 1, 3))
    return sizes.max() / sizes.min()


def test_channels_below_the_ceiling_of_a_relu6_are_equalized(images):
    model = uneven(layers.ReLU(6.0, name="first"), layers.Activation("relu6"))
    even = equalize(model, batches=[images])
    np.testing.assert_allclose(even(images), model(images), rtol=1e-4, atol=1e-5)
    before, after = (m.get_layer("norm0").gamma.numpy() for m in (model, even))
    outputs = keras.Model(model.inputs[0], model.get_layer("first").output)(images)
    at_ceiling = np.asarray(outputs).max((0, 1, 2)) >= 6
    assert 0 < at_ceiling.sum() < 4
    np.testing.assert_array_equal(after[at_ceiling], before[at_ceiling])
    assert (after[~at_ceiling] != before[~at_ceiling]).all()
    assert spread(even.get_layer("conv1")) < 0.5 * spread(model.get_layer("conv1"))


def test_more_of_the_float_model_is_kept_through_relu6(images):
    model = uneven(layers.ReLU(6.0), layers.ReLU(6.0))
    expected = model.predict(images, verbose=0)
    errors = {}
    for option in (False, True):
        quantized = tfc.quantize(model, PER_TENSOR, calibration_data=images, equalize=option)
        errors[option] = np.std(quantized.predict(images, verbose=0) - expected)
    assert errors[True] < 0.7 * errors[False]


def test_layers_that_a_ceiling_holds_are_named(images):
    model = uneven(layers.ReLU(6.0), layers.ReLU())
    with pytest.warns(UserWarning, match="changes little at conv0: a ReLU6 follows"):
        tfc.quantize(model, equalize=True)
    model.get_layer("norm0").gamma.assign(np.full(8, 50.0))
    with pytest.warns(UserWarning, match="changes little at conv0: most of their channels reach"):
        tfc.quantize(model, calibration_data=images, equalize=True)
