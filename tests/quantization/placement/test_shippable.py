"""What a file cannot hold is refused at once; what it holds in float is named at once."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc

VOLUME, IMAGE, VECTOR = (4, 8, 8, 2), (8, 8, 4), (6,)


class MonteCarlo(layers.Layer):
    """Dropout that goes on in inference."""

    def __init__(self):
        super().__init__()
        self.drop = layers.Dropout(0.5)

    def call(self, x):
        return self.drop(x, training=True)


class Contrast(layers.Layer):
    def call(self, x):
        return tf.image.adjust_contrast(x, 2.0)


def around(shape, call, dtype="float32"):
    """A model of a layer that can be quantized, on another input, and `call`."""
    inputs = keras.Input(shape, dtype=dtype, name="x")
    other = keras.Input((3,), name="other")
    return keras.Model([inputs, other], [call(inputs), layers.Dense(2, name="dense")(other)])


@pytest.mark.parametrize(
    ("shape", "call", "dtype", "message"),
    [
        (VOLUME, layers.AdaptiveMaxPooling3D(2, name="pool"), "float32", r"pool \(.*: .*MaxPool"),
        (
            (3,),
            layers.CategoryEncoding(4, output_mode="multi_hot", name="encode"),
            "int32",
            r"encode \(CategoryEncoding",
        ),
        (
            (3,),
            layers.IntegerLookup(vocabulary=[3, 4, 5], name="look"),
            "int64",
            r"look \(IntegerLookup",
        ),
        (VECTOR, lambda x: ops.arctan2(x, x[:, :1]), "float32", "Atan2 of two shapes"),
        (VECTOR, MonteCarlo(), "float32", "no LiteRT operator for random numbers"),
        ((4, 4, 4, 2), layers.Conv3D(4, 2, groups=2), "float32", "a grouped Conv3D"),
        (IMAGE, Contrast(), "float32", "AdjustContrastv2"),
    ],
)
def test_what_no_file_can_hold_is_refused_before_training(shape, call, dtype, message, tmp_path):
    model = around(shape, call, dtype)
    for refuse in (
        tfc.plan,
        tfc.quantize,
        lambda m: tfc.export_tflite(m, tmp_path / "m.tflite", allow_float=True),
    ):
        with pytest.raises(ValueError, match=message):
            refuse(model)


@pytest.mark.parametrize(
    ("shape", "call", "name"),
    [
        (VOLUME, layers.AveragePooling3D(2, name="pool"), "pool"),
        (VECTOR, lambda x: ops.argmax(x, -1), "argmax.*"),
    ],
)
def test_what_a_file_can_hold_in_int8_alone_is_refused_in_float(shape, call, name):
    model = around(shape, call)
    assert not tfc.plan(model).float_layers
    config = tfc.QuantizationConfig(by_name={name: None})
    with pytest.raises(ValueError, match=f"{name}.* no LiteRT operator for"):
        tfc.plan(model, config)


@pytest.mark.parametrize(
    ("shape", "call", "name", "reason"),
    [
        (
            IMAGE,
            lambda x: ops.prod(x, axis=(1, 2), keepdims=True),
            "prod",
            "a product goes over one axis of up to 16 values",
        ),
        (
            VECTOR,
            lambda x: ops.logsumexp(x, -1, keepdims=True),
            "logsumexp",
            "tfcompress has no .* Logsumexp yet",
        ),
        (
            VOLUME,
            layers.Conv3DTranspose(2, 2, 3, name="conv"),
            "conv",
            "tfcompress has no .* strides larger than the kernel yet",
        ),
    ],
)
def test_what_stays_in_float_is_named_at_quantize_and_ships_in_float(
    shape, call, name, reason, tmp_path
):
    model = around(shape, call)
    data = [np.random.default_rng(0).normal(size=(8, *s)).astype("float32") for s in (shape, (3,))]
    with pytest.warns(UserWarning, match=f"1 of the layers stay in float: {name}.*: {reason}"):
        quantized = tfc.quantize(model, calibration_data=data)
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=name):
        tfc.export_tflite(quantized, path)
    report = tfc.export_tflite(quantized, path, allow_float=True)
    assert report.agreement == 1.0
    left = tfc.QuantizationConfig(by_name={rf"{name}.*": None})
    tfc.quantize(model, left)


def test_export_names_float_layers_at_the_input_and_the_output(tmp_path):
    image = keras.Input(IMAGE)
    small = ops.logsumexp(image, 1, keepdims=True)
    best = ops.logsumexp(layers.Dense(4)(layers.Flatten()(small)), -1, keepdims=True)
    for model, names in (
        (keras.Model(image, best), "logsumexp.*logsumexp_1"),
        (keras.Model(small, best), "logsumexp_1"),
    ):
        data = [
            np.random.default_rng(0).normal(size=(8, *t.shape[1:])).astype("float32")
            for t in model.inputs
        ]
        with pytest.warns(UserWarning, match=names):
            quantized = tfc.quantize(model, calibration_data=data)
        with pytest.raises(ValueError, match=f"Received: .*({names})"):
            tfc.export_tflite(quantized, tmp_path / "model.tflite")


def test_an_ordinary_net_gives_no_warning():
    inputs = keras.Input((8, 8, 3))
    x = layers.RandomFlip()(layers.Rescaling(1 / 127.5, -1.0)(inputs))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    skip = x = layers.ReLU(6.0)(x)
    x = layers.SeparableConv2D(4, 3, padding="same", activation="silu")(x)
    x = layers.Add()([layers.SpatialDropout2D(0.1)(x), skip])
    x = layers.Concatenate()([layers.MaxPooling2D(2)(x), layers.AveragePooling2D(2)(x)])
    x = layers.UpSampling2D(2, interpolation="bilinear")(layers.LeakyReLU()(x))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfc.quantize(model)
