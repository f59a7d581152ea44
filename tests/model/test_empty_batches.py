"""Batches without a sample, which a short last batch leaves to some replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.model.empty_batches import needs_samples, stop_without_samples

X = np.random.default_rng(0).normal(size=(4, 6, 6, 4)).astype(np.float32)


def fill_memory(variables):
    """Leaves large numbers where the next gradients are allocated."""
    held = [tf.fill(v.shape, np.float32(1e30)) for v in variables for _ in range(60)]
    del held


def test_gradients_of_compressed_depthwise_kernels_are_zero():
    inputs = keras.Input((6, 6, 4))
    image = layers.DepthwiseConv2D(3, name="image")(inputs)
    both = layers.SeparableConv2D(4, 3, name="separable")(inputs)
    rows = layers.Reshape((36, 4))(inputs)
    row = layers.DepthwiseConv1D(3, name="row")(rows)
    outputs = [layers.Flatten()(x) for x in (image, both, row)]
    model = tfc.quantize(keras.Model(inputs, outputs), calibration_data=X)
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, 6, 6, 4))])
    def gradients(x):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(y**2) for y in model(x, training=True))
        return tape.gradient(loss, kernels)

    assert all(np.any(g.numpy()) for g in gradients(X))
    for _ in range(3):
        fill_memory(kernels)
        for kernel, gradient in zip(kernels, gradients(X[:0]), strict=True):
            np.testing.assert_array_equal(gradient.numpy(), 0, err_msg=kernel.path)


class Own(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, inputs):
        return inputs * self.scale


class Around(layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.DepthwiseConv2D(3), True),
        (layers.SeparableConv2D(4, 3), True),
        (layers.BatchNormalization(), True),
        (layers.BatchNormalization(synchronized=True), False),
        (layers.DepthwiseConv2D(3, trainable=False), False),
        (layers.Conv2D(4, 3), False),
        (layers.LayerNormalization(), False),
        (Own(), True),
        (Around(), False),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_which_layers_need_samples(layer, expected):
    layer(X)
    assert needs_samples(layer) is expected


def test_training_stops_before_a_batch_without_samples():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    stop_without_samples(model, "dense")
    stop_without_samples(model, "dense")
    features, labels = X[:, 0, 0], X[:, 0, 1, :2]
    spec = tf.TensorSpec((None, 4)), tf.TensorSpec((None, 2))

    def batches(*sizes):
        each = [(features[:size], labels[:size]) for size in sizes]
        data = tf.data.Dataset.from_generator(lambda: iter(each), output_signature=spec)
        return data.apply(tf.data.experimental.assert_cardinality(len(each)))

    model.fit(batches(4, 3), shuffle=False, verbose=0)
    before = model.get_weights()
    with pytest.raises(tf.errors.InvalidArgumentError, match="dense would make weights NaN"):
        model.fit(batches(0), shuffle=False, verbose=0)
    for value, kept in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, kept)


@keras.saving.register_keras_serializable("tests")
class WithClass(keras.Model):
    """Functional, of a user's own class, whose copies get its attributes."""


def test_the_stop_is_of_one_model_alone():
    inputs = keras.Input((6, 6, 4))
    model = WithClass(inputs, layers.DepthwiseConv2D(3)(inputs))
    step = model.train_step
    model.train_step = mark = lambda data: step(data)
    mark.has_axis = True
    stop_without_samples(model, "dense")
    # As `distribute.across_workers` leaves it.
    assert model.train_step.has_axis
    for copy in (tfc.quantize(model, calibration_data=X), tfc.cluster(model, 2)):
        assert "train_step" not in vars(copy)
