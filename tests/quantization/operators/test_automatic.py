"""A user's layers and functions that nobody registered: what runs in int8, what does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from keras.src.applications.convnext import LayerScale
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

import tfcompress as tfc


class SameConv(layers.Conv2D):
    """Changes nothing but defaults."""

    def __init__(self, filters, **kwargs):
        super().__init__(filters, 3, padding="same", activation="relu", **kwargs)


class PaddedConv(layers.Conv2D):
    """A kernel and a bias that Keras' own `call` reads."""

    def call(self, x):
        return super().call(ops.relu(x))


class Scaled(layers.Layer):
    def build(self, shape):
        around_one = keras.initializers.RandomNormal(1.0, 0.2)
        self.scale = self.add_weight(name="scale", shape=shape[-1:], initializer=around_one)
        self.shift = self.add_weight(name="shift", shape=(1, 1, 1, shape[-1]), initializer="normal")

    def call(self, x):
        return self.scale * x + self.shift


class Projection(layers.Layer):
    """Its weights are a Dense layer's; its function is TensorFlow's."""

    def build(self, shape):
        decay = keras.regularizers.L2(1e-3)
        self.w = self.add_weight(name="w", shape=(shape[-1], 6), regularizer=decay)
        self.b = self.add_weight(name="b", shape=(6,), initializer="normal")

    def call(self, x):
        return tf.nn.relu(tf.matmul(x, self.w) + self.b)


class Positions(layers.Layer):
    """One trained value per position and channel."""

    def build(self, shape):
        self.table = self.add_weight(name="table", shape=(1, *shape[1:]), initializer="normal")

    def call(self, x):
        return ops.relu(x + self.table)


class Residual(layers.Layer):
    """Keras layers, a dropout, and a layer of the user's own inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")
        self.norm = layers.BatchNormalization(name="norm", moving_mean_initializer="normal")
        self.drop = layers.Dropout(0.5, name="drop")
        self.scaled = Scaled(name="scaled")

    def call(self, x, training=None):
        y = ops.relu(self.norm(self.conv(x), training=training))
        return ops.relu(x + self.scaled(self.drop(y, training=training)))


class Summed(layers.Layer):
    """Only the logarithm of a sum has no int8 form."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(shape[-1], 4))

    def call(self, x):
        return ops.relu(ops.matmul(ops.logsumexp(x, axis=1, keepdims=True), self.w))


def gate(x):
    return x * ops.relu6(x + 3) / 6


MEAN = np.linspace(-1, 1, 8).astype("float32")


def centered(x):
    return tf.nn.relu(tf.reduce_mean(x, axis=[1, 2], keepdims=True) * x - tf.constant(MEAN))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(32, 6, 6, 8)).astype("float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 8), name="image")
    x = layers.Conv2D(8, 1, name="first")(inputs)
    residual = Residual(name="residual")
    outputs = {
        "defaults": SameConv(4, name="defaults")(x),
        "padded": PaddedConv(4, 3, name="padded")(x),
        "scaled": Scaled(name="scaled")(x),
        "projection": Projection(name="projection")(x),
        "residual": residual(residual(x)),
        "positions": Positions(name="positions")(x),
        "gate": layers.Conv2D(4, 1, activation=gate, name="gate")(x),
        "lambda": layers.Lambda(centered, name="lambda")(x),
        "summed": Summed(name="summed")(x),
    }
    return keras.Model(inputs, outputs)


def test_they_run_in_int8_as_they_were_trained(model, images, tmp_path):
    plan = tfc.plan(model)
    assert plan.float_layers == {
        "summed": "summed_logsumexp: tfcompress has no int8 form of Logsumexp yet"
    }
    parts = {entry.name: entry.parts for entry in plan}
    assert parts["defaults"] == ("defaults",)
    assert parts["projection"] == ("projection_w", "projection")
    assert parts["scaled"] == ("scaled",)
    assert "positions_table" in parts["positions"]
    assert parts["summed"] == ("summed_logsumexp", "summed_w", "summed")
    assert "residual_scaled_scale" in parts["residual"]
    # Tracing leaves nothing behind in the user's layer.
    residual = model.get_layer("residual")
    assert not residual.conv._inbound_nodes
    assert not residual.scaled._inbound_nodes
    with pytest.warns(UserWarning, match="summed_logsumexp"):
        quantized = tfc.quantize(model, calibration_data=images)
    dense = quantized.get_layer("projection_w")
    np.testing.assert_array_equal(dense.kernel, model.get_layer("projection").w)
    assert dense.kernel.regularizer.l2 == pytest.approx(1e-3)
    assert len(quantized.get_layer("residual_conv")._inbound_nodes) == 2
    # The second call of the residual layer drops and normalizes in training, as the layer does.
    train, infer = (quantized(images, training=t)["residual"] for t in (True, False))
    assert np.abs(train - infer).max() > 0.1
    quantized.compile("sgd", "mse")
    targets = {k: np.zeros((32, *v.shape[1:])) for k, v in model.output.items()}
    quantized.fit(images, targets, verbose=0)
    expected, stripped = model(images), tfc.strip(tfc.quantize(model, calibration_data=images))
    for name, value in stripped(images).items():
        np.testing.assert_allclose(value, expected[name], rtol=0.1, atol=0.1)
    report = tfc.export_tflite(
        quantized, tmp_path / "m.tflite", verify_data=images, allow_float=True
    )
    assert {p.output: p.equal for p in report.parity["serving_default"]} == dict.fromkeys(
        targets, 1.0
    )
    assert set(report.float_tensors.values()) <= {"", "first", "summed_logsumexp"}


def test_layers_that_keras_applications_define_run_in_int8(images, tmp_path):
    def layer_scale(name):
        layer = LayerScale(1.0, 8, name=name)
        layer.build(None)
        layer.gamma.assign(np.random.default_rng(1).normal(size=8))
        return layer

    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 8), name="image")
    x = layers.Conv2D(8, 1, name="first")(inputs)
    y = layers.Dense(8, name="dense")(layers.Dense(16, activation="relu", name="hidden")(x))
    x = layers.Add(name="sum")([x, layer_scale("folded")(y)])
    x = layer_scale("alone")(x)
    up = layers.Conv2D(8, 1, name="up")(layers.Conv2D(4, 1, activation="relu", name="down")(x))
    x = layers.Activation("relu", name="relu")(CustomScaleLayer(0.17, name="join")([x, up]))
    model = keras.Model(inputs, layers.Dense(4, name="logits")(x))
    plan = tfc.plan(model)
    assert not plan.float_layers
    assert {entry.name: entry.parts for entry in plan}["join"] == ("join_multiply", "join")
    quantized = tfc.quantize(model, calibration_data=images)
    np.testing.assert_allclose(quantized(images), model(images), atol=0.1)
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=images)
    assert not report.float_tensors
    assert report.parity["serving_default"][0].equal >= 0.999


class Branch(layers.Layer):
    def call(self, x, training=None):
        return x * 2.0 if training else x + 1.0


class Flow(layers.Layer):
    def call(self, x):
        return ops.relu(x) if ops.max(x) > 0 else x

    def compute_output_shape(self, shape):
        return shape


class Loss(layers.Layer):
    def call(self, x):
        self.add_loss(ops.mean(x))
        return ops.relu(x)


class Count(layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(name="count", shape=(), trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return ops.relu(x)


class Derived(layers.Layer):
    def build(self, shape):
        self.raw = self.add_weight(name="raw", shape=shape[-1:])

    def call(self, x):
        return x * ops.softplus(self.raw)


class Latents(layers.Layer):
    """Its weight meets a layer before the input, and it reads the batch size."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.latents = self.add_weight(name="latents", shape=(1, *shape[1:]))
        self.norm.build(shape)

    def call(self, x):
        return x + self.norm(ops.repeat(self.latents, ops.shape(x)[0], axis=0))


class Position(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(name="table", shape=shape[1:])

    def call(self, x):
        return ops.power(x, self.table)


class Dropping(layers.Layer):
    def call(self, x, training=None):
        return keras.random.dropout(x, 0.5) if training else 2 * x


class Elsewhere(layers.Layer):
    """Its shape says something else than its call."""

    def call(self, x):
        return tf.math.atan2(x, x)


class Doubling(layers.Layer):
    """Keras records the default of `training` in the graph, and overrides it in `fit`."""

    def call(self, x, training=False):
        return 2 * x if training else x


class Hidden(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = tf.Variable(2.0, trainable=False)

    def call(self, x):
        return tf.math.atan2(x, self.scale)


def test_what_a_layer_does_in_training_alone_stays():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, Doubling()(layers.Dense(3, activation="relu")(inputs)))
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    quantized = tfc.quantize(model, calibration_data=x)
    assert not quantized.plan.float_layers
    for training in (False, True):
        expected = model(x, training=training)
        np.testing.assert_allclose(quantized(x, training=training), expected, atol=0.1)


def test_a_layer_with_a_variable_that_keras_does_not_know_is_refused():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(2)(Hidden(name="hidden")(inputs)))
    with pytest.raises(ValueError, match=r"'hidden' \(Hidden\) with a tf.Variable in 'scale'"):
        tfc.plan(model)


def test_what_cannot_be_followed_is_named_with_its_reason():
    inputs = keras.Input((6, 6, 8))
    x = layers.Conv2D(8, 1)(inputs)
    expected = {
        Branch: "other operations in training",
        Flow: "control flow of its call depends on the values",
        Loss: "adds losses",
        Count: "updates its state 'count'",
        Latents: "computes with its weights before they meet the input",
        Derived: "computes with its weights before they meet the input",
        Position: "its weight 'table' is an argument of Power",
        Dropping: "TensorFlow's stateless_dropout, which has no translation",
        Elsewhere: "TensorFlow's atan2, which has no translation",
    }
    model = keras.Model(inputs, [kind(name=kind.__name__.lower())(x) for kind in expected])
    found = tfc.plan(model).float_layers
    assert set(found) == {kind.__name__.lower() for kind in expected}
    for kind, reason in expected.items():
        assert reason in found[kind.__name__.lower()]
        assert f"the custom layer {kind.__name__} cannot be traced" in found[kind.__name__.lower()]
