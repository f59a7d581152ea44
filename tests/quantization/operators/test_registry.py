"""The registry of what the runtime does at each operator."""

import keras
import pytest
from keras import layers

from tfcompress.quantization.operators.registry import (
    Role,
    activation_name,
    activation_of,
    keeps_codes,
    role,
    unsupported_options,
)


class Mine(layers.Dense):
    pass


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.Dense(2), Role.KERNEL),
        (layers.Conv2DTranspose(2, 2), Role.KERNEL),
        (layers.Conv3D(2, 2), None),
        (layers.Rescaling(2.0), Role.AFFINE),
        (layers.Add(), Role.ARITHMETIC),
        (layers.GlobalAveragePooling2D(), Role.AVERAGE),
        (layers.ReLU(), Role.RELU),
        (layers.ReLU(6.0), Role.RELU),
        (layers.ReLU(negative_slope=0.1), Role.ELEMENTWISE),
        (layers.ReLU(threshold=1.0), None),
        (layers.ReLU(6.0, negative_slope=0.1), None),
        (layers.LeakyReLU(), Role.ELEMENTWISE),
        (layers.ELU(), None),
        (layers.Softmax(), Role.FIXED),
        (layers.Activation("tanh"), Role.FIXED),
        (layers.Activation("linear"), Role.MOVE),
        (layers.Activation(lambda x: x), None),
        (layers.MaxPooling2D(), Role.MOVE),
        (layers.Dropout(0.5), Role.MOVE),
        (layers.UpSampling2D(interpolation="nearest"), Role.MOVE),
        (layers.UpSampling2D(interpolation="bilinear"), Role.RESAMPLE),
        (layers.Concatenate(), Role.JOIN),
        (layers.LSTM(2), None),
        # A user's subclass may compute anything.
        (Mine(2), None),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_roles(layer, expected):
    assert role(layer) is expected


def test_reasons():
    channels_first = layers.Conv2D(2, 2, data_format="channels_first")
    assert unsupported_options(channels_first) == "LiteRT's kernels are channels-last"
    assert role(channels_first) is None
    assert unsupported_options(layers.Conv2D(2, 2)) is None


def test_operations():
    x = keras.Input((4,))
    operation = (x + 1.0)._keras_history.operation
    assert role(operation) is Role.ARITHMETIC
    tanh = keras.ops.tanh(x)._keras_history.operation
    assert (role(tanh), activation_of(tanh)) == (Role.FIXED, "tanh")
    assert role(keras.ops.sin(x)._keras_history.operation) is None
    assert keeps_codes(keras.ops.reshape(x, (2, 2))._keras_history.operation)
    assert not keeps_codes(tanh)


def test_activation_names():
    assert activation_name(None) == "linear"
    assert activation_name(keras.activations.silu) == "silu"

    def silu(x):
        return x

    # A function of the same name is not Keras' function.
    assert activation_name(silu) is None
