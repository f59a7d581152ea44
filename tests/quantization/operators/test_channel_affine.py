"""Rescaling, Normalization and folded batch norm of a quantized model, against Keras' own."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.operators.channel_affine import ChannelAffine, channel_affine_layer


@pytest.mark.parametrize(
    ("layer", "data"),
    [
        (layers.Rescaling(2.0, offset=-1.0), None),
        (layers.Rescaling([1.0, 2.0, 0.5], offset=[0.0, 1.0, 2.0]), None),
        (layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 1.0, 0.25]), None),
        (layers.Normalization(axis=None, mean=1.0, variance=4.0), None),
        (layers.Normalization(axis=-1), "adapt"),
        (layers.Normalization(axis=-1), "constant"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_affine_layers_are_those_of_keras(layer, data):
    x = np.random.default_rng(0).normal(1.0, 2.0, (5, 4, 3)).astype(np.float32)
    if data is not None:
        # A constant channel has the variance 0.
        layer.adapt(x if data == "adapt" else x * np.float32([1, 0, 1]))
    expected = layer(x)
    ours = channel_affine_layer(layer)
    assert isinstance(ours, ChannelAffine)
    np.testing.assert_allclose(ours(x), expected, rtol=1e-4, atol=1e-3)


def test_the_folded_bias_lies_on_the_int32_grid():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, name="conv", bias_initializer="uniform")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization(name="bn", beta_initializer="ones")(x))
    data = np.random.default_rng(0).uniform(0, 1, (16, 8, 8, 1)).astype(np.float32)
    model.get_layer("bn").moving_variance.assign([0.3, 2.0, 5.0, 0.1])
    quantized = tfc.quantize(model, calibration_data=data)
    bn, conv = quantized.get_layer("bn"), quantized.get_layer("conv")
    assert bn.is_folded()
    fold = bn.fold()
    factor, addend = (np.asarray(v, np.float64) for v in (fold.factor, fold.addend))
    _, rounded = conv.transformed(training=False)
    step = np.asarray(rounded.bias_step, np.float64) * np.abs(factor)
    bias = np.asarray(conv.bias, np.float64) * factor + addend
    np.testing.assert_allclose(bias / step, np.round(bias / step), atol=0.01)
    assert np.abs(bias / step).max() > 100
