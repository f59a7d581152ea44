"""What `factorize` is given: data of every kind, odd kernels, layers that it cannot cut."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.factorization import plan_factorization


def dense_model(before=None):
    inputs = keras.Input((8,), name="x")
    x = inputs if before is None else before(inputs)
    return keras.Model(inputs, layers.Dense(8, name="dense")(x))


def samples(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def error_of(model, data):
    return plan_factorization(model, ranks=2, data=data).forms["dense"].error


def test_a_tensor_is_an_array_and_batches_are_batches():
    model, x = dense_model(), samples(40, 8)
    expected = error_of(model, x)
    for data in (
        tf.constant(x),
        {"x": tf.constant(x)},
        [x[:30], tf.constant(x[30:])],
        (x[i : i + 8] for i in range(0, 40, 8)),
        tf.data.Dataset.from_tensor_slices(x).batch(10),
        tf.data.Dataset.from_tensor_slices({"x": x}).batch(10),
    ):
        assert error_of(model, data) == pytest.approx(expected, rel=1e-5)


def test_data_for_a_model_without_a_layer_to_cut():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(1, name="dense")(inputs))
    plan = plan_factorization(model, ranks=2, data=samples(4, 8))
    assert "single" in plan.left_alone["dense"]


def test_several_inputs():
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    model = keras.Model([a, b], layers.Dense(8, name="dense")(layers.Add()([a, b])))
    x = samples(40, 8)
    expected = error_of(model, [x, x])
    for data in (
        (x, tf.constant(x)),
        {"a": x, "b": x},
        [(x[:9], x[:9]), (x[9:], x[9:])],
        tf.data.Dataset.from_tensor_slices((x, x)).batch(10),
    ):
        assert error_of(model, data) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="one length"):
        error_of(model, [x, x[:3]])


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (list(samples(3, 8)), ValueError, r"shape \(None, 8\) for the input 'x'.*np.stack"),
        (samples(8), ValueError, r"Received: \(8,\)"),
        (samples(4, 7), ValueError, r"Received: \(4, 7\)"),
        (tf.data.Dataset.from_tensor_slices(samples(3, 8)), ValueError, r"batch\(32\)"),
        ([[samples(4, 8), samples(4)]], ValueError, "data for 1 inputs. Received: 2 arrays"),
        ({"y": samples(4, 8)}, ValueError, r"without \['x'\]"),
        (samples(4, 8) * np.nan, ValueError, "before 'dense'"),
        (3, TypeError, "Received: int"),
    ],
)
def test_data_that_do_not_fit(data, kind, message):
    with pytest.raises(kind, match=message):
        error_of(dense_model(), data)


def test_samples_of_images_are_not_taken_for_batches():
    # Keras would add a last axis to a sample and run it.
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3)(inputs)
    model = keras.Model(inputs, layers.Conv2D(8, 3, name="dense")(x))
    x = samples(4, 8, 8, 1)
    for data in (list(x), x[0], tf.constant(x[0])):
        with pytest.raises(ValueError, match=r"shape \(None, 8, 8, 1\)"):
            error_of(model, data)
    assert error_of(model, tf.constant(x)) == pytest.approx(error_of(model, x), rel=1e-5)


def test_a_layer_that_reads_only_zeros_keeps_the_plain_norm():
    model = dense_model(layers.ReLU())
    assert error_of(model, -np.ones((4, 8), np.float32)) == error_of(model, None)


def test_numbers_of_numpy():
    plan = plan_factorization(dense_model(), ranks=np.int64(2))
    assert plan.forms["dense"].ranks == (2,)
    plan = plan_factorization(dense_model(), ranks={"dense": np.int32(99)})
    assert "grow" in plan.left_alone["dense"]
    share = plan_factorization(dense_model(), target_macs=np.float32(0.5))
    assert share.total_macs[1] <= 0.5 * share.total_macs[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_kernel_that_is_not_finite_is_named(value):
    model = dense_model()
    kernel = np.ones((8, 8))
    kernel[0, 0] = value
    model.get_layer("dense").kernel.assign(kernel)
    for data in (None, samples(4, 8)):
        with pytest.raises(ValueError, match="kernel of 'dense'"):
            error_of(model, data)


class Own(layers.Layer):
    """A layer with a matrix of its own."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 32), name="matrix")

    def call(self, inputs):
        return inputs @ self.matrix


def test_every_layer_with_a_kernel_is_named():
    inputs = keras.Input((2, 4, 4, 2))
    x = layers.ConvLSTM2D(2, 3, name="conv_lstm")(inputs)
    x = layers.PReLU(name="prelu")(x)
    x = Own(name="own")(layers.Flatten()(x))
    x = layers.LayerNormalization(axis=(1, 2), name="norm")(layers.Reshape((4, 8))(x))
    x = layers.RNN(layers.GRUCell(3), return_sequences=True, name="rnn")(x)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both_ways")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.TimeDistributed(layers.Dense(8), name="in_time")(x)
    x = layers.SpectralNormalization(layers.Dense(8), name="spectral")(x)
    model = keras.Model(inputs, layers.Dense(8, name="dense")(x))
    plan = plan_factorization(model, ranks=2)
    assert set(plan.forms) == {"dense"}
    names = {"conv_lstm", "own", "rnn", "both_ways", "attention", "in_time", "spectral"}
    assert set(plan.left_alone) == names
    assert "ConvLSTM2D" in plan.left_alone["conv_lstm"]
    assert "both_ways" in str(plan)
