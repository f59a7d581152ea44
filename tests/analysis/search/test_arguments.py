"""What is refused before any work, and what a folder of a search is compared by."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.analysis.search import search as module

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(80, 6)).astype(np.float32), np.arange(80) % 3
TRAIN, VALIDATION = (X[:50], Y[:50]), (X[50:], Y[50:])


def net(loss=True):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(16, "relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(hidden))
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", crossentropy if loss is True else loss, metrics=["accuracy"])
    return model


@pytest.fixture
def no_work(monkeypatch):
    def work(*args, **options):
        raise AssertionError("the sensitivities were measured first")

    monkeypatch.setattr(module, "sensitivity", work)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number, 1 or more. Received: 0"),
        ({"epochs": 1.5}, "`epochs` must be a whole number, 0 or more. Received: 1.5"),
        ({"samples": 1.5}, "`samples`.*Received: 1.5"),
        ({"trials": 0}, "`trials`.*Received: 0"),
        ({"seed": -1}, "`seed`.*Received: -1"),
        ({"seed": 2**32}, "`seed` must be below"),
        ({"learning_rate": -1.0}, "`learning_rate` must be a positive number. Received: -1.0"),
        ({"max_drop": True}, "`max_drop` to be a number >= 0. Received: True"),
        ({"max_drop": "a"}, "`max_drop` to be a number >= 0. Received: 'a'"),
        ({"confidence": 0.5}, "`confidence`.*Received: 0.5"),
        ({"train": X[:50]}, "`train` with labels"),
        ({"validation": (X[:30], Y[:30])}, "other samples than `train`.*same first 30 samples"),
        ({"validation": (np.full_like(X[50:], np.nan), Y[50:])}, "finite inputs in `validation`"),
        ({"validation": (X[50:], Y[50:] + 3)}, "class numbers from 0 to 2.*labels from 3 to 5"),
    ],
)
def test_wrong_arguments_are_named_before_any_work(no_work, options, message):
    given = {"train": TRAIN, "validation": VALIDATION, "budget": tfc.Bytes(3000), **options}
    with pytest.raises(ValueError, match=message):
        tfc.search(net(), given.pop("train"), given.pop("validation"), verbose=0, **given)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("m", {}, "Expected a Keras model. Received: 'm'"),
        (None, {"path": 3}, "`path` to be a folder"),
        (None, {"options": "int4"}, "`options` to be a sequence of names. Received: 'int4'"),
    ],
)
def test_wrong_types_are_named_before_any_work(no_work, model, options, message):
    with pytest.raises(TypeError, match=message):
        tfc.search(model or net(), TRAIN, VALIDATION, budget=tfc.Bytes(3000), verbose=0, **options)


def test_a_metric_of_one_output_is_refused_for_two_before_any_work(no_work):
    inputs = keras.Input((6,))
    outputs = {"a": layers.Dense(3, name="a")(inputs), "b": layers.Dense(3, name="b")(inputs)}
    model = keras.Model(inputs, outputs)
    labels = {"a": Y, "b": Y}
    train, held = (
        (X[rows], {k: v[rows] for k, v in labels.items()}) for rows in (slice(50), slice(50, 80))
    )
    with pytest.raises(ValueError, match=r"one output.*Pass metric="):
        tfc.search(model, train, held, budget=tfc.Bytes(3000), verbose=0)


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        (True, np.eye(3, dtype=np.float32)[Y], r"sparse_categorical_crossentropy.*\(32, 3\)"),
        ("categorical_crossentropy", Y, r"categorical_crossentropy.*labels of shape \(32,\)"),
        ("mse", np.zeros((80, 5), np.float32), r"labels of shape \(32, 5\).*\(32, 3\)"),
        (None, np.zeros((80, 1), np.float32), "Expected a compiled model"),
    ],
)
def test_labels_that_the_loss_does_not_take_are_refused_before_any_work(
    no_work, loss, labels, message
):
    model = net(loss)
    if loss is None:
        # Neither class scores nor a loss.
        inputs = keras.Input((6,))
        model = keras.Model(inputs, layers.Dense(1)(inputs))

    def zeros(labels, outputs):
        return np.zeros(len(outputs))

    train, validation = (X[:50], labels[:50]), (X[50:], labels[50:])
    given = {"budget": tfc.Bytes(3000), "metric": zeros, "mode": "max", "verbose": 0}
    with pytest.raises(ValueError, match=message):
        tfc.search(model, train, validation, **given)
    # Nothing is trained: the loss is not asked for.
    with pytest.raises(AssertionError, match="sensitivities"):
        tfc.search(model, train, validation, **given, epochs=0)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"train": (X[:50], np.r_[Y[:40], Y[:10]])}, "train"),
        ({"train": (X[:45], Y[:45])}, "train"),
        ({"confidence": 0.8}, "confidence"),
        ({"model": net(keras.losses.SparseCategoricalCrossentropy())}, "loss"),
    ],
)
def test_a_folder_of_another_search_is_refused(monkeypatch, changed, name, tmp_path):
    class Stopped(Exception):
        pass

    def stop(*args, **options):
        raise Stopped

    monkeypatch.setattr(module, "sensitivity", stop)
    given = {"model": net(), "train": TRAIN, "validation": VALIDATION, "confidence": 0.95}

    def run(model, train, validation, confidence):
        # Sensitivities are measured on ten samples; the rest trains.
        tfc.search(
            model,
            train,
            validation,
            budget=tfc.Bytes(3000),
            samples=10,
            confidence=confidence,
            path=tmp_path,
            verbose=0,
        )

    for _ in range(2):
        with pytest.raises(Stopped):
            run(**given)
    with pytest.raises(ValueError, match=f"whose {name} is another one"):
        run(**given | changed)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: tfc.Bytes(9000, gzip=2), TypeError),
        (lambda: tfc.Bytes(0.5), ValueError),
        (lambda: tfc.PeakMemory(0.5), ValueError),
        (lambda: tfc.Macs(float("inf")), ValueError),
        (lambda: tfc.Macs(1.5), ValueError),
        (lambda: tfc.Parameters(2.5), ValueError),
        (lambda: tfc.Instructions(1e6 + 0.5), ValueError),
        (lambda: tfc.Latency(1, table={}), TypeError),
        (lambda: tfc.Latency(1, table=3), TypeError),
        (lambda: tfc.Latency(1, table={"CONV_2D": -1}), ValueError),
        (lambda: tfc.Latency(1, table={"CONV2D": 0.3}), ValueError),
    ],
)
def test_budgets_that_make_no_sense(make, error):
    with pytest.raises(error, match="Received"):
        make()
