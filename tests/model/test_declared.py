"""What layers declare of themselves, and the registration of kernels of a user's own."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.model.compressed import COMPRESSED, compress
from tfcompress.model.declared import channels_like, returns_input
from tfcompress.model.kernels import KERNELS, compressible_kernels
from tfcompress.model.macs import COUNTERS, uncounted_layers
from tfcompress.model.transforms import KeepMask
from tfcompress.pruning.structure.rules.registry import find_rule
from tfcompress.quantization import FakeQuantize


def test_declarations():
    class Scale(layers.Layer):
        channels_like = layers.Identity

    assert channels_like(Scale()) is layers.Identity
    assert channels_like(layers.Dense(2)) is layers.Dense
    assert channels_like(compress(layers.Dense(2), {"kernel": [KeepMask()]})) is layers.Dense
    assert find_rule(Scale()) is find_rule(layers.ReLU())
    assert find_rule(FakeQuantize()) is find_rule(layers.ReLU())
    assert returns_input(FakeQuantize())
    assert not returns_input(layers.Identity())


@keras.saving.register_keras_serializable(package="test_declared")
class PerPosition(layers.Layer):
    """A kernel for each of the positions, as macs= says."""

    def build(self, shape):
        self.matrix = self.add_weight(name="matrix", shape=(*shape[1:], 3))

    def call(self, x):
        return keras.ops.einsum("bpi,pio->bpo", x, self.matrix)


@pytest.fixture
def registered():
    tables = (KERNELS, COUNTERS, COMPRESSED)
    tfc.register_kernel(
        PerPosition,
        tfc.KernelSpec("matrix"),
        macs=lambda layer, inputs, output: inputs[0][1] * inputs[0][2] * output[-1],
    )
    yield
    for table in tables:
        del table[PerPosition]


def test_a_registered_kernel_is_in_every_table(registered):
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, PerPosition(name="mine")(inputs))
    (kernel,) = compressible_kernels(model)
    assert (kernel.name, kernel.spec.output_axes, kernel.spec.input_axes) == (
        "mine/matrix",
        (-1,),
        (-2,),
    )
    assert tfc.count_macs(model) == 5 * 4 * 3
    assert uncounted_layers(model) == []
    layer = compress(model.get_layer("mine"), {"matrix": [KeepMask()]})
    assert isinstance(layer, PerPosition)
    assert keras.saving.get_registered_name(type(layer)) == "test_declared>CompressedPerPosition"
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    layer(x)
    layer.transformed.of_type(KeepMask)["matrix"].mask.assign(np.zeros((5, 4, 3)))
    np.testing.assert_array_equal(layer(x), np.zeros((2, 5, 3)))


def test_an_unknown_kernel_is_named():
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, PerPosition(name="mine")(inputs))
    assert compressible_kernels(model) == ()
    assert uncounted_layers(model) == ["mine"]
