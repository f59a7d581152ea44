"""The registry of what the runtime does at each operator."""

import operator
import pathlib

import keras
import pytest
from keras import layers

from tfcompress.quantization.operators.elementwise import TABLE
from tfcompress.quantization.operators.registry import (
    UNKNOWN,
    Role,
    activation_name,
    activation_of,
    keeps_codes,
    operator_of,
    registered,
    role,
    unsupported_options,
)
from tfcompress.quantization.operators.table import operator_table


class Mine(layers.Dense):
    pass


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.Dense(2), Role.KERNEL),
        (layers.Conv2DTranspose(2, 2), Role.KERNEL),
        (layers.Conv3D(2, 2), Role.KERNEL),
        (layers.Conv3DTranspose(2, 2), Role.KERNEL),
        (layers.Conv3DTranspose(2, 2, 3), None),
        (layers.Rescaling(2.0), Role.AFFINE),
        (layers.Add(), Role.ARITHMETIC),
        (layers.GlobalAveragePooling2D(), Role.AVERAGE),
        (layers.ReLU(), Role.RELU),
        (layers.ReLU(6.0), Role.RELU),
        (layers.ReLU(negative_slope=0.1), Role.ELEMENTWISE),
        (layers.ReLU(threshold=1.0), Role.ELEMENTWISE),
        (layers.ReLU(6.0, negative_slope=0.1), Role.ELEMENTWISE),
        (layers.LeakyReLU(), Role.ELEMENTWISE),
        (layers.ELU(), Role.ELEMENTWISE),
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
    assert role(keras.ops.sin(x)._keras_history.operation) is Role.ELEMENTWISE
    assert role(keras.ops.isfinite(x)._keras_history.operation) is None
    assert keeps_codes(keras.ops.reshape(x, (2, 2))._keras_history.operation)
    assert not keeps_codes(tanh)


def test_activation_names():
    assert activation_name(None) == "linear"
    assert activation_name(keras.activations.silu) == "silu"

    def silu(x):
        return x

    # A function of the same name is not Keras' function.
    assert activation_name(silu) is None


def test_the_page_of_operators_is_the_registry():
    page = pathlib.Path(__file__).parents[3] / "docs" / "operators.md"
    # Written by python -m tfcompress.quantization.operators.table
    assert page.read_text(encoding="utf-8") == operator_table()


def test_every_entry_is_of_something_public():
    names = registered()
    ops = [name for name in names if name.startswith("ops.")]
    assert {"ops.add", "ops.relu6", "ops.get_item", "ops.leaky_relu"} <= set(ops)
    assert not [n for n in ops if not operator.attrgetter(n.removeprefix("ops."))(keras.ops)]
    assert {"layers.Dense", "layers.PReLU", "activations.tanh", "NegativeSlope"} <= set(names)


def test_what_is_not_registered_is_unknown():
    assert operator_of(Mine(2)) is UNKNOWN
    assert operator_of(layers.Activation([].append)) is UNKNOWN
    assert operator_of(keras.ops.isfinite(keras.Input((2,)))._keras_history.operation) is UNKNOWN


def test_an_activation_layer_is_what_its_function_is():
    for layer in (layers.ReLU(), layers.Activation("relu"), layers.Lambda(keras.activations.relu)):
        assert operator_of(layer) is operator_of(layers.ReLU())
    assert operator_of(layers.ReLU(threshold=1.0)).role is TABLE.role
    assert operator_of(layers.Lambda(keras.activations.relu, arguments={"max_value": 1})) is UNKNOWN
