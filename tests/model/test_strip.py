"""`strip`: a plain Keras model with what was learned baked in."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests import fresh
from tfcompress.model.compressed import compress, is_compressed
from tfcompress.model.transforms import KeepMask


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).uniform(0, 1, (64, 8, 8, 1)).astype(np.float32)


@pytest.fixture
def model():
    inputs = keras.Input((8, 8, 1), name="image")
    y = layers.Normalization(mean=[0.4], variance=[0.3])(inputs)
    y = layers.Conv2D(4, 3, activation="hard_silu", name="conv")(y)
    y = layers.BatchNormalization(name="norm")(layers.SeparableConv2D(4, 3, name="sep")(y))
    y = layers.PReLU(shared_axes=[1, 2], alpha_initializer="uniform")(y)
    y = layers.AveragePooling2D(3, 1, "same")(layers.Average()([y, layers.ReLU()(y), y]))
    y = layers.Dense(3, activation="softmax", name="out")(layers.Flatten()(y))
    return keras.Model(inputs, y, name="net")


def test_effective_weights_are_baked_in_and_nothing_of_ours_is_left(model, x):
    quantized = tfc.quantize(model, "w4a8", calibration_data=x)
    stripped = tfc.strip(quantized)
    for layer in stripped._flatten_layers():
        assert not type(layer).__module__.startswith("tfcompress")
    kernel = stripped.get_layer("conv").kernel
    np.testing.assert_array_equal(kernel, quantized.get_layer("conv").effective_weights()["kernel"])
    assert len(np.unique(kernel[..., 0])) <= 15
    assert not np.array_equal(kernel, model.get_layer("conv").kernel)
    assert stripped.output_names == ["out"]
    assert stripped.name == "net"


def test_eight_bits_hardly_change_what_the_model_predicts(model, x):
    stripped = tfc.strip(tfc.quantize(model, calibration_data=x))
    np.testing.assert_allclose(stripped(x), model(x), atol=0.01)


def test_it_loads_where_there_is_no_tfcompress(model, x, tmp_path):
    stripped = tfc.strip(tfc.quantize(model, calibration_data=x))
    stripped.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import os, sys, keras, numpy\n"
        "sys.modules['tfcompress'] = None\n"
        "os.chdir(sys.argv[1])\n"
        "model = keras.models.load_model('model.keras')\n"
        "numpy.save('y.npy', model.predict(numpy.load('x.npy'), verbose=0))\n"
    )
    fresh.run(code, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), stripped.predict(x, verbose=0))


def test_masks_shared_layers_and_nested_models():
    dense = compress(layers.Dense(4, name="dense"), {"kernel": [KeepMask()]})
    inner = keras.Sequential([keras.Input((4,)), dense, layers.ReLU(name="relu")], name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(dense(inputs)))
    mask = np.eye(4, dtype=np.float32)
    dense.transformed.of_type(KeepMask)["kernel"].mask.assign(mask)
    stripped = tfc.strip(model)
    assert not any(is_compressed(layer) for layer in stripped._flatten_layers())
    assert len([la for la in stripped.layers if isinstance(la, layers.Dense)]) == 1
    kernel = stripped.get_layer("dense").kernel.numpy()
    np.testing.assert_array_equal(kernel != 0, mask != 0)
    data = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(stripped(data), model(data), rtol=1e-5)


def test_a_plain_model_is_copied_and_a_subclassed_one_refused(model, x):
    model.get_layer("conv").trainable = False
    copy = tfc.strip(model)
    np.testing.assert_array_equal(copy(x), model(x))
    assert not copy.get_layer("conv").trainable
    assert copy.get_layer("conv") is not model.get_layer("conv")

    class Mine(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="subclassed model"):
        tfc.strip(Mine())
