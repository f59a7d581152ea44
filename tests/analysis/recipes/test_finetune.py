"""What a recipe trains to: compiled losses and their weights, and what a teacher says."""

import importlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, tree

import tfcompress as tfc
from tfcompress.analysis.recipes import stages as run
from tfcompress.analysis.recipes.finetune import finetune, training_batches

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 8)).astype("float32")
CLASSES = (X @ RNG.normal(size=(8, 4))).argmax(1)
VALUES = X[:, :1].copy()
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TRAIN = {"train": {"epochs": 2, "batch_size": 32, "learning_rate": 0.01}}


def dense(units, activation=None, loss="mse", **options):
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(16, "relu", name="hidden")
    out = layers.Dense(units, activation, name="out")
    model = keras.Sequential([keras.Input((8,)), hidden, out])
    model.compile(keras.optimizers.Adam(0.01), loss, **options)
    return model


def two_heads(structure=list, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), name="x")
    h = layers.Dense(16, "relu")(inputs)
    value, kind = layers.Dense(1, name="value")(h), layers.Dense(4, name="kind")(h)
    model = keras.Model(
        inputs, {"value": value, "kind": kind} if structure is dict else [value, kind]
    )
    model.compile("adam", **options)
    return model


def moved(model, before):
    """How far the kernel of each head of two is from what it was."""
    after = {
        name: next(la for la in model.layers if la.name == name).kernel
        for name in ("value", "kind")
    }
    return {
        n: float(np.abs(np.asarray(k) - np.asarray(before.get_layer(n).kernel)).max())
        for n, k in after.items()
    }


def no_training(*args, **options):
    raise AssertionError("a training came first")


LOSSES = {"value": "mse", "kind": SPARSE}


# Keras says of an output without a loss that it has no gradient.
@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
@pytest.mark.parametrize("stages", [[], [{"distill": {}}]])
@pytest.mark.parametrize(
    ("structure", "loss", "weights"),
    [
        (list, ["mse", SPARSE], [0.0, 1.0]),
        (list, LOSSES, {"kind": 1.0, "value": 0.0}),
        (dict, LOSSES, {"kind": 1.0, "value": 0.0}),
        (list, [None, SPARSE], None),
    ],
)
def test_a_head_without_weight_or_loss_does_not_move(structure, loss, weights, stages):
    model = two_heads(structure, loss=loss, loss_weights=weights)
    y = {"value": VALUES, "kind": CLASSES} if structure is dict else [VALUES, CLASSES]
    found = tfc.Recipe([{"quantize": {}}, *stages, TRAIN]).run(model, (X, y), verbose=0)
    far = moved(found, model)
    assert far["value"] == 0
    assert far["kind"] > 1e-3


def test_the_weights_of_losses_are_those_of_keras():
    """One step of SGD is that of the model's own `fit`."""
    model = two_heads(loss=["mse", SPARSE], loss_weights=[0.25, 2.0])
    own = keras.models.clone_model(model)
    own.set_weights(model.get_weights())
    own.compile(keras.optimizers.SGD(0.1), ["mse", SPARSE], loss_weights=[0.25, 2.0])
    own.fit(X, [VALUES, CLASSES], batch_size=96, verbose=0)
    train = {"optimizer": "SGD", "learning_rate": 0.1, "batch_size": 96}
    train["learning_rate_schedule"] = "constant"
    found = tfc.Recipe([{"train": train}]).run(model, (X, [VALUES, CLASSES]), verbose=0)
    for one, other in zip(own.weights, found.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


class Net(keras.Model):
    def __init__(self, units=4):
        super().__init__()
        self.hidden, self.out = layers.Dense(16, "relu"), layers.Dense(units)

    def call(self, x):
        return self.out(self.hidden(x))


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=3), CLASSES),
        (
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
            np.eye(4, dtype="float32")[CLASSES],
        ),
        ("mse", X[:, :4]),
    ],
)
def test_the_loss_of_a_subclassed_model_is_its_own(loss, labels):
    keras.utils.set_random_seed(0)
    model = Net()
    model.compile("adam", loss)
    model(X)
    weights = model.get_weights()
    train = {"optimizer": "SGD", "learning_rate": 0.1, "batch_size": 96}
    train["learning_rate_schedule"] = "constant"
    found = tfc.Recipe([{"train": train}]).run(model, (X, labels), verbose=0)
    model.compile(keras.optimizers.SGD(0.1), loss)
    model.fit(X, labels, batch_size=96, verbose=0)
    assert not np.array_equal(model.get_weights()[0], weights[0])
    for one, other in zip(model.weights, found.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("units", "activation", "loss", "wrong"),
    [
        (1, None, "mse", VALUES * 0 + 50),
        (3, None, "mae", X[:, :3] * 0 + 50),
        (1, "sigmoid", "binary_crossentropy", VALUES * 0 + 1),
        (5, "sigmoid", "binary_crossentropy", X[:, :5] * 0 + 1),
        (5, None, keras.losses.BinaryCrossentropy(from_logits=True), X[:, :5] * 0 + 1),
        (4, None, SPARSE, CLASSES * 0 + 3),
        (4, "softmax", "sparse_categorical_crossentropy", CLASSES * 0 + 3),
    ],
)
def test_a_teacher_teaches_every_kind_of_output(units, activation, loss, wrong):
    """With `labels` 0 the labels do not count, and the student comes near its teacher."""
    model = dense(units, activation, loss)
    stages = [{"prune": {"sparsity": 0.3}}, {"distill": {"labels": 0.0}}]
    found, other, untrained = (
        tfc.Recipe(
            [*stages, {"train": {"epochs": epochs, "batch_size": 32, "learning_rate": 0.02}}]
        )
        .run(model, (X, y), verbose=0)
        .predict(X, verbose=0)
        for y, epochs in ((wrong, 30), (wrong * 0, 30), (wrong, 0))
    )
    np.testing.assert_array_equal(found, other)
    taught = model.predict(X, verbose=0)
    if loss is SPARSE:
        # What is added to all logits of a sample changes nothing.
        found, taught, untrained = (
            a - a.mean(1, keepdims=True) for a in (found, taught, untrained)
        )
    assert np.mean(np.abs(found - taught)) < 0.5 * np.mean(np.abs(untrained - taught))


def test_a_teacher_teaches_several_outputs_without_labels():
    model = two_heads(dict, loss=LOSSES)
    stages = [{"quantize": {}}, {"distill": {"labels": 0.0}}, TRAIN]
    found = tfc.Recipe(stages).run(model, X, verbose=0)
    assert min(moved(found, model).values()) > 1e-3


class OwnLoss(keras.Model):
    """A loss that is no compiled one: every output goes to 0.3."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(y_pred - 0.3))


def test_a_train_step_of_the_user_s_own_is_not_replaced_by_a_teacher(monkeypatch):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), name="x")
    h = layers.Dense(16, "relu", name="hidden")(inputs)
    model = OwnLoss(inputs, layers.Dense(1, name="out")(h))
    model.compile("adam")
    found = tfc.Recipe([{"quantize": {}}, {"train": {"epochs": 60, "learning_rate": 0.05}}])
    assert abs(found.run(model, (X, VALUES), verbose=0).predict(X, verbose=0).mean() - 0.3) < 0.1
    student = tfc.quantize(model, "int8", calibration_data=X)
    finetune(student, model, (X, VALUES), kinds=["values"], epochs=60, learning_rate=0.05)
    assert abs(student.predict(X, verbose=0).mean() - 0.3) < 0.1
    monkeypatch.setattr(run, "finetune", no_training)
    with pytest.raises(ValueError, match="OwnLoss, with its own train_step or compute_loss"):
        tfc.Recipe([TRAIN, {"distill": {}}, TRAIN]).run(model, (X, VALUES), verbose=0)


@pytest.mark.parametrize(
    ("stages", "train", "message"),
    [
        (
            [{"distill": {"temperature": 2.0}}],
            (X, VALUES),
            "Received: outputs that hold ['values']",
        ),
        ([], X, "Expected `train` with labels"),
        ([{"distill": {}}], X, "Expected `train` with labels"),
    ],
)
def test_what_a_training_lacks_is_said_before_any(monkeypatch, stages, train, message):
    monkeypatch.setattr(run, "finetune", no_training)
    with pytest.raises(ValueError, match=re.escape(message)):
        tfc.Recipe([*stages, TRAIN]).run(dense(1), train, verbose=0)


def test_a_model_without_a_loss_can_be_taught():
    model = dense(1, None, None)
    with pytest.raises(ValueError, match="Expected a compiled model"):
        tfc.Recipe([TRAIN]).run(model, (X, VALUES), verbose=0)
    stages = [{"quantize": {"layers": {"hidden": "int4"}}}, {"distill": {"labels": 0}}, TRAIN]
    found = tfc.Recipe(stages).run(model, X, verbose=0)
    assert not np.array_equal(found.get_layer("hidden").kernel, model.get_layer("hidden").kernel)


@pytest.mark.parametrize(
    ("inputs", "labels", "distill"),
    [
        (list, list, [{"distill": {}}]),
        (tuple, list, []),
        (dict, tuple, []),
        (list, dict, [{"distill": {}}]),
    ],
)
def test_lists_tuples_and_dicts_of_inputs_and_labels(inputs, labels, distill):
    keras.utils.set_random_seed(0)
    # Not in the order of their names, and of two types.
    b, a = keras.Input((8,), name="b"), keras.Input((2,), name="a", dtype="int32")
    flat = layers.Flatten()(layers.Embedding(5, 3, keras.initializers.RandomNormal(0.0, 1.0))(a))
    h = layers.Dense(8, "relu")(layers.Concatenate()([b, flat]))
    outs = {"v": layers.Dense(1, name="v")(h), "k": layers.Dense(4, name="k")(h)}
    model = keras.Model([b, a], outs if labels is dict else list(outs.values()))
    loss = {"v": "mse", "k": SPARSE}
    model.compile("adam", loss if labels is dict else list(loss.values()))
    tokens = RNG.integers(0, 5, (96, 2))
    x = {"b": X, "a": tokens} if inputs is dict else inputs([X, tokens])
    y = {"v": VALUES, "k": CLASSES} if labels is dict else labels([VALUES, CLASSES])
    recipe = tfc.Recipe([{"quantize": {}}, *distill, TRAIN])
    found = recipe.run(model, (x, y), verbose=0)
    fed = {"b": X, "a": tokens}
    same = tree.flatten(recipe.run(model, ((X, tokens), y), verbose=0).predict(fed, verbose=0))
    for one, other in zip(tree.flatten(found.predict(fed, verbose=0)), same, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("data", [(X, CLASSES), [X, X], {"x": X}, X, tf.constant(X)])
def test_steps_of_arrays_are_those_of_their_batches(data):
    inputs = [keras.Input((8,), name="x"), keras.Input((8,), name="z")]
    inputs = inputs if isinstance(data, list) else inputs[:1]
    model = keras.Model(inputs, layers.Add()(inputs) if len(inputs) > 1 else inputs[0])
    batches, steps = training_batches(data, model, 32)
    assert steps == 3 == len(list(batches))


def test_a_list_of_batches_trains_as_arrays_do():
    model = dense(4, None, SPARSE)
    recipe = tfc.Recipe([{"train": {"epochs": 2, "batch_size": 96}}])
    one, other = (
        recipe.run(model, data, verbose=0).predict(X, verbose=0)
        for data in ([(X, CLASSES)], (X, CLASSES))
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_search_trains_lists_of_heads_by_their_losses():
    model = two_heads(loss=["mse", SPARSE], loss_weights=[0.0, 1.0])
    found = tfc.search(
        model,
        (X[:64], [VALUES[:64], CLASSES[:64]]),
        (X[64:], [VALUES[64:], CLASSES[64:]]),
        budget=tfc.Bytes(1e6),
        options=["int4"],
        metric=lambda y, p: (p[1].argmax(-1) == y[1]).astype("float32"),
        mode="max",
        epochs=1,
        trials=1,
        samples=32,
        batch_size=32,
        verbose=0,
    )
    far = moved(found.model, model)
    assert far["value"] == 0 < far["kind"]
    assert {"distill": {}} in found.recipe.stages


def test_a_search_says_at_once_what_its_training_lacks(monkeypatch):
    # The name `search` of the package is the function.
    module = importlib.import_module("tfcompress.analysis.search.search")
    monkeypatch.setattr(module, "sensitivity", no_training)
    model = dense(1, None, None)
    with pytest.raises(ValueError, match="Expected a compiled model, whose loss"):
        tfc.search(
            model,
            (X[:64], VALUES[:64]),
            (X[64:], VALUES[64:]),
            budget=tfc.Bytes(1e6),
            metric=lambda y, p: -np.abs(y - p)[:, 0],
            mode="max",
            samples=32,
        )
