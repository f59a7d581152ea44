"""Models whose loss or class Keras has not registered: the objects are the user's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc


def own_loss(y, p):
    return keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)


def step(model, data):
    x, y = data
    with tf.GradientTape() as tape:
        loss = keras.ops.mean(own_loss(y, model(x, training=True)))
    gradients = tape.gradient(loss, model.trainable_weights)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
    return loss


class Stepping(keras.Model):
    """A functional model with its own step."""

    def train_step(self, data):
        return {"loss": step(self, data)}


class Tracking(keras.Model):
    """A subclassed model whose step reads what its constructor has set."""

    def __init__(self):
        super().__init__()
        self.hidden, self.logits = layers.Dense(8, activation="relu"), layers.Dense(4)
        self.tracker = keras.metrics.Mean(name="tracked")

    def call(self, x):
        return self.logits(self.hidden(x))

    def train_step(self, data):
        self.tracker.update_state(step(self, data))
        return {"tracked": self.tracker.result()}


def functional(cls):
    inputs = keras.Input((6,), name="features")
    hidden = layers.Dense(8, activation="relu", name="hidden")(inputs)
    return cls(inputs, layers.Dense(4, name="logits")(hidden))


def subclassed():
    model = Tracking()
    model(np.zeros((1, 6), "float32"))
    return model


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 6)).astype("float32")
    y = (x @ rng.normal(size=(6, 4))).argmax(-1)
    return (x[:96], y[:96]), (x[96:], y[96:])


@pytest.mark.parametrize(
    "make",
    [lambda: functional(keras.Model), lambda: functional(Stepping), subclassed],
    ids=["loss", "step", "subclassed"],
)
def test_they_are_searched_resumed_and_their_recipe_runs(make, data, tmp_path):
    train, validation = data
    keras.utils.set_random_seed(0)
    model = make()
    model.compile("adam", own_loss)
    call = {"options": ["sparsity=0.5", "int4"], "budget": tfc.Bytes(1e6), "max_drop": 1.0}
    call |= {"trials": 1, "metric": "accuracy", "epochs": 1, "verbose": 0, "path": tmp_path}
    result = tfc.search(model, train, validation, **call)
    again = tfc.search(model, train, validation, **call)
    for one, other in zip(result.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    compressed = result.recipe.run(model, train, verbose=0)
    assert isinstance(compressed, type(model)) or type(model) is keras.Model
