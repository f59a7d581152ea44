"""Layers that run their own `call` with transformed kernels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import fresh
from tfcompress.model.compressed import (
    COMPRESSED,
    compress,
    compressed_class,
    compressed_variables,
    is_compressed,
)
from tfcompress.model.einsum_layer import SizedEinsumDense
from tfcompress.model.kernels import KERNELS, layer_kernels
from tfcompress.model.transforms import KeepMask, WeightTransform


@keras.saving.register_keras_serializable(package="tests")
class Double(WeightTransform):
    """Twice the weight; keeps the dtype that it was handed."""

    order = 5

    def apply(self, value, call):
        self.seen_dtype = value.dtype
        return value * 2.0


@keras.saving.register_keras_serializable(package="tests")
class AddOne(WeightTransform):
    order = 15

    def apply(self, value, call):
        return value + 1.0


IMAGE, SEQUENCE, VOLUME = (6, 6, 4), (6, 4), (5, 5, 5, 2)
# Layer class → (arguments, shape of a sample).
CASES = {
    layers.Dense: ({"units": 3}, (4,)),
    layers.EinsumDense: ({"equation": "abc,cd->abd", "output_shape": (None, 3)}, SEQUENCE),
    layers.Conv1D: ({"filters": 3, "kernel_size": 3}, SEQUENCE),
    layers.Conv2D: ({"filters": 3, "kernel_size": 3}, IMAGE),
    layers.Conv3D: ({"filters": 3, "kernel_size": 3}, VOLUME),
    layers.Conv1DTranspose: ({"filters": 3, "kernel_size": 3}, SEQUENCE),
    layers.Conv2DTranspose: ({"filters": 3, "kernel_size": 3}, IMAGE),
    layers.Conv3DTranspose: ({"filters": 3, "kernel_size": 3}, VOLUME),
    layers.DepthwiseConv1D: ({"kernel_size": 3}, SEQUENCE),
    layers.DepthwiseConv2D: ({"kernel_size": 3}, IMAGE),
    layers.SeparableConv1D: ({"filters": 3, "kernel_size": 3}, SEQUENCE),
    layers.SeparableConv2D: ({"filters": 3, "kernel_size": 3}, IMAGE),
    layers.Embedding: ({"input_dim": 9, "output_dim": 3}, (5,)),
    layers.LSTM: ({"units": 3}, SEQUENCE),
    layers.GRU: ({"units": 3}, SEQUENCE),
    layers.SimpleRNN: ({"units": 3}, SEQUENCE),
}


def samples(cls, shape, count=4):
    random = np.random.default_rng(0)
    if cls is layers.Embedding:
        return random.integers(0, 9, (count, *shape)).astype(np.int32)
    return random.normal(size=(count, *shape)).astype(np.float32)


def test_every_class_of_the_kernel_table_is_tried():
    known = {cls for cls in COMPRESSED if cls.__module__.startswith("keras.")}
    assert set(CASES) == known
    assert set(COMPRESSED) == {*KERNELS, layers.EinsumDense, SizedEinsumDense}


@pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)
def test_kernels_are_replaced_gradients_reach_the_latent_variable(cls, tmp_path):
    arguments, shape = CASES[cls]
    plain = cls(**arguments, name="layer")
    x = samples(cls, shape)
    expected_plain = plain(x)
    names = [kernel.spec.name for kernel in layer_kernels(plain)]
    layer = compress(plain, {name: [Double()] for name in names})
    dtype = "int32" if cls is layers.Embedding else "float32"
    inputs = keras.Input(shape, dtype=dtype)
    model = keras.Model(inputs, layer(inputs))
    latent = [kernel.variable for kernel in layer_kernels(layer)]
    assert [v.name for v in latent] == names
    for source, target in zip(plain.weights, layer.weights, strict=True):
        target.assign(source)
    # A layer with doubled kernels is a plain one whose kernels are doubled.
    for kernel in layer_kernels(plain):
        kernel.variable.assign(kernel.variable * 2.0)
    expected = plain(x)
    assert np.abs(expected - expected_plain).max() > 1e-3
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x) ** 2)
    np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)
    with tf.GradientTape() as reference:
        other = tf.reduce_sum(plain(x) ** 2)
    ours = tape.gradient(loss, [v.value for v in latent])
    theirs = reference.gradient(other, [k.variable.value for k in layer_kernels(plain)])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            2.0 * tf.convert_to_tensor(b), tf.convert_to_tensor(a), rtol=1e-4, atol=1e-4
        )
    assert isinstance(layer, cls)
    assert compressed_class(layer) is type(layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(
    "options",
    [{"jit_compile": True}, {"jit_compile": False}, {"steps_per_execution": 8}],
    ids=str,
)
def test_fit_reads_through_the_chain_and_trains_the_latent_kernel(options):
    inputs = keras.Input((4,))
    layer = compress(layers.Dense(2, use_bias=False), {"kernel": [AddOne(), Double()]})
    model = keras.Model(inputs, layer(inputs))
    before = layer.kernel.numpy()
    x = samples(layers.Dense, (4,), 16)
    y = np.zeros((16, 2), np.float32)
    model.compile(keras.optimizers.SGD(0.01), "mse", **options)
    model.fit(x, y, batch_size=2, epochs=1, shuffle=False, verbose=0)
    kernel = before.copy()
    for i in range(0, 16, 2):
        batch = x[i : i + 2]
        # d/dk of mean((x · (2k + 1))²), through a factor of 2.
        error = batch @ (2 * kernel + 1)
        kernel -= 0.01 * 2.0 * batch.T @ (2 * error / error.size)
    np.testing.assert_allclose(layer.kernel, kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.effective_weights()["kernel"], 2 * kernel + 1, rtol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_the_latent_kernel_is_read_in_float32_under_mixed_precision(policy):
    layer = compress(layers.Dense(2, dtype=policy), {"kernel": [Double()]})
    outputs = layer(np.ones((1, 4), np.float32))
    # 16 bits would round this away.
    layer.kernel.assign(np.full((4, 2), 1.0 + 2.0**-20, np.float32))
    value = layer.effective_weights()["kernel"]
    assert value.dtype == tf.float32
    assert float(value[0, 0]) == 2.0 * (1.0 + 2.0**-20)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")


def test_dropout_seeds_move_and_losses_count_once():
    layer = compress(
        layers.LSTM(3, dropout=0.5, kernel_regularizer="l2", activity_regularizer="l2", seed=1),
        {"kernel": [Double()], "recurrent_kernel": [Double()]},
    )
    x = samples(layers.LSTM, SEQUENCE)
    first, second = layer(x, training=True), layer(x, training=True)
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_array_equal(layer(x), layer(x))
    # One regularizer of a variable and one of the output.
    assert len(layer.losses) == 2


def test_chains_run_in_their_order_whoever_came_first():
    one = compress(layers.Dense(2), {"kernel": [AddOne(), Double()]})
    two = compress(compress(layers.Dense(2), {"kernel": [AddOne()]}), {"kernel": [Double()]})
    for layer in (one, two):
        layer.build((None, 3))
        layer.kernel.assign(np.full((3, 2), 3.0))
        assert np.all(layer.effective_weights()["kernel"] == 7.0)
        assert [type(t) for t in layer.transforms["kernel"]] == [Double, AddOne]


def test_a_mask_is_state_and_survives_both_kinds_of_file(tmp_path):
    def build():
        inputs = keras.Input((4,))
        layer = compress(layers.Dense(3, name="dense"), {"kernel": [KeepMask()]})
        return keras.Model(inputs, layer(inputs))

    model = build()
    mask = np.eye(4, 3, dtype=np.float32)
    model.get_layer("dense").transformed.of_type(KeepMask)["kernel"].mask.assign(mask)
    model.save_weights(tmp_path / "a.weights.h5")
    other = build()
    other.load_weights(tmp_path / "a.weights.h5")
    model.save(tmp_path / "a.keras")
    x = samples(layers.Dense, (4,))
    for copy in (other, keras.models.load_model(tmp_path / "a.keras")):
        np.testing.assert_array_equal(copy(x), model(x))
        effective = copy.get_layer("dense").effective_weights()["kernel"]
        np.testing.assert_array_equal(np.asarray(effective) != 0, mask != 0)
        assert copy.get_layer("dense").kernel.numpy().all()


def test_a_fresh_process_loads_with_nothing_but_the_import(tmp_path):
    inputs = keras.Input(IMAGE)
    x = compress(layers.Conv2D(2, 3), {"kernel": [KeepMask()]})(inputs)
    x = layers.Reshape((4, 8))(x)
    chains = {"kernel": [KeepMask()], "recurrent_kernel": [KeepMask()]}
    model = keras.Model(inputs, compress(layers.LSTM(2), chains)(x))
    model.save(tmp_path / "model.keras")
    data = samples(layers.Conv2D, IMAGE)
    np.save(tmp_path / "x.npy", data)
    code = (
        "import os, sys, keras, numpy, tfcompress\n"
        "os.chdir(sys.argv[1])\n"
        "model = keras.models.load_model('model.keras')\n"
        "numpy.save('y.npy', model.predict(numpy.load('x.npy'), verbose=0))\n"
    )
    fresh.run(code, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model.predict(data, verbose=0))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: layers.Bidirectional(
            compress(layers.GRU(2), {"kernel": [Double()], "recurrent_kernel": [Double()]})
        ),
        lambda: layers.TimeDistributed(compress(layers.Dense(2), {"kernel": [Double()]})),
    ],
    ids=["bidirectional", "time_distributed"],
)
def test_inside_a_wrapper(wrap, tmp_path):
    inputs = keras.Input(SEQUENCE)
    model = keras.Model(inputs, wrap()(inputs))
    x = samples(layers.GRU, SEQUENCE)
    expected = model.predict(x, verbose=0)
    for variable in model.trainable_variables:
        if "kernel" in variable.name:
            variable.assign(variable * 0.5)
    # Halved and doubled again, the kernels are not what they were before: they were read doubled.
    assert np.abs(model.predict(x, verbose=0) - expected).max() > 1e-3
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_clone_keeps_what_is_shared_shared():
    inputs = keras.Input((4,))
    layer = compress(layers.Dense(4), {"kernel": [KeepMask()]})
    model = keras.Model(inputs, layer(layer(inputs)))
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    found = [la for la in copy.layers if is_compressed(la)]
    assert len(found) == 1
    assert found[0] is not layer
    x = samples(layers.Dense, (4,))
    np.testing.assert_array_equal(copy(x), model(x))


def test_a_frozen_layer_stays_and_its_states_are_no_trainable_weights():
    inputs = keras.Input((4,))
    layer = compress(layers.Dense(2), {"kernel": [KeepMask(), Double()]})
    model = keras.Model(inputs, layer(inputs))
    assert [v.name for v in model.trainable_variables] == ["kernel", "bias"]
    assert set(compressed_variables(layer)) == {"kernel", "bias"}
    layer.trainable = False
    assert not model.trainable_variables
    before = model.get_weights()
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@keras.saving.register_keras_serializable(package="tests")
class Shift(WeightTransform):
    """Adds a number of its own that is trained."""

    order = 6

    def build(self, shape):
        self.by = self.add_weight(name="by", shape=(), initializer="zeros")

    def apply(self, value, call):
        return value + self.by


def test_states_of_a_layer_that_was_frozen_before_are_frozen(tmp_path):
    inputs = keras.Input((4,))
    frozen = compress(layers.Dense(2, trainable=False), {"kernel": [Shift()]})
    free = compress(layers.Dense(2), {"kernel": [Shift()]})
    model = keras.Model(inputs, free(frozen(inputs)))
    model.save(tmp_path / "frozen.keras")
    copies = keras.models.load_model(tmp_path / "frozen.keras"), keras.models.clone_model(model)
    for found in (model, *copies):
        assert [v.name for v in found.trainable_variables] == ["kernel", "bias", "by"]
        found.layers[1].trainable = True
        assert len(found.trainable_variables) == 6


def test_a_users_own_subclass_is_refused():
    class MyDense(layers.Dense):
        pass

    assert compressed_class(MyDense(2)) is None
    with pytest.raises(TypeError, match=r"Received: 'mine' of type MyDense.*scheme None"):
        compress(MyDense(2, name="mine"), {})
