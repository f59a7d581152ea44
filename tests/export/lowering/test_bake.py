"""Kernels and biases as the file must hold them."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.lowering.bake import bake
from tfcompress.model.compressed import compress
from tfcompress.model.transforms import KeepMask


@pytest.fixture
def quantized():
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, name="conv", bias_initializer="uniform")(inputs)
    x = layers.BatchNormalization(name="norm", beta_initializer="normal")(x)
    model = keras.Model(inputs, layers.Dense(3, name="dense", bias_initializer="uniform")(x))
    model.get_layer("norm").gamma.assign([1.0, -2.0, 0.5, -0.25])
    model.get_layer("norm").moving_variance.assign([2.0, 0.3, 1.0, 4.0])
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 2)).astype(np.float32)
    return tfc.quantize(model, calibration_data=data), data


def test_a_folded_kernel_is_codes_times_scales(quantized):
    model, data = quantized
    kernel, bias, baked = bake(model.get_layer("conv"))
    np.testing.assert_allclose(baked.codes * baked.scale, kernel, rtol=1e-5, atol=1e-7)
    assert baked.codes.dtype == np.int8
    assert np.abs(baked.codes).max(axis=(0, 1, 2)).tolist() == [127] * 4
    assert np.all(baked.scale > 0)
    step = np.float64(baked.input_scale) * baked.scale
    np.testing.assert_allclose(bias / step, np.round(bias / step), atol=0.01)
    # The folded convolution is convolution and batch norm in inference, but for their rounding.
    rounded = model.get_layer(model.layers[1].name)(data)
    expected = model.get_layer("norm")(model.get_layer("conv")(rounded))
    folded = keras.ops.conv(rounded, kernel) + bias
    half_a_step = 0.5001 * float(model.get_layer("norm_quantizer").scale)
    np.testing.assert_allclose(folded, expected, rtol=1e-5, atol=half_a_step)


def test_a_plain_kernel_is_the_effective_one(quantized):
    layer = quantized[0].get_layer("dense")
    kernel, bias, baked = bake(layer)
    np.testing.assert_array_equal(kernel, layer.effective_weights()["kernel"])
    np.testing.assert_array_equal(bias, layer.effective_weights()["bias"])
    assert (baked.layer, baked.keras_class, baked.num_bits) == ("dense", "Dense", 8)


def test_without_quantized_weights_there_are_no_codes():
    layer = compress(layers.Dense(3, use_bias=False), {"kernel": [KeepMask()]})
    layer.build((None, 4))
    kernel, bias, baked = bake(layer)
    np.testing.assert_array_equal(kernel, layer.kernel)
    assert bias is None
    assert baked is None
