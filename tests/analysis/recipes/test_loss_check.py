"""Labels are tried on the loss as `fit` has it, whatever the structure of the outputs."""

import keras
import numpy as np
import pytest
from keras import layers, tree

from tfcompress.analysis.recipes.loss_check import check_loss

X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
Y = np.arange(40) % 3
ONE_HOT, VALUES = np.eye(3, dtype="float32")[Y], X[:, :1]
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(as_dict):
    inputs = keras.Input((6,))
    # What layers add to the loss is none of the labels.
    h = layers.Dense(8, "relu", kernel_regularizer="l2")(inputs)
    scores, value = layers.Dense(3, name="scores")(h), layers.Dense(1, name="value")(h)
    return keras.Model(inputs, {"s": scores, "v": value} if as_dict else [scores, value])


@pytest.mark.parametrize(
    ("as_dict", "loss", "weights", "labels"),
    [
        (False, [SPARSE, "mse"], None, [Y, VALUES]),
        (False, [SPARSE, "mse"], [1.0, 0.5], (Y[:, None], VALUES)),
        (False, {"scores": SPARSE, "value": "mse"}, None, {"scores": Y, "value": VALUES}),
        (False, "mse", None, [ONE_HOT, VALUES]),
        (True, {"s": SPARSE, "v": "mse"}, {"s": 1.0, "v": 0.0}, {"s": Y, "v": VALUES}),
        (True, {"s": SPARSE, "v": None}, None, {"s": Y.astype("float32"), "v": VALUES}),
    ],
)
def test_labels_of_several_outputs(as_dict, loss, weights, labels):
    model = net(as_dict)
    outputs = tree.flatten(model.predict(X, verbose=0))
    model.compile("adam", loss, loss_weights=weights)
    model.evaluate(X, labels, verbose=0)
    arguments = {"loss": loss, "loss_weights": weights}
    check_loss(model, arguments, labels, outputs)
    first = {"scores", "s"} & set(labels) if isinstance(labels, dict) else {0}
    if loss == "mse":
        return
    wrong = dict(labels) if isinstance(labels, dict) else list(labels)
    wrong[first.pop()] = ONE_HOT
    with pytest.raises(ValueError, match=r"sparse_categorical_crossentropy.*\(40, 3\)"):
        check_loss(model, arguments, wrong, outputs)


def test_labels_that_are_no_class():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(inputs))
    outputs = model.predict(X, verbose=0)
    with pytest.raises(ValueError, match=r"Received a label value of 7 which is outside"):
        check_loss(model, {"loss": SPARSE}, Y + 5, outputs)
