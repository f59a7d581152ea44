"""What outputs hold, and how far they move."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.analysis.measuring.measures import divergence, output_kinds

X = np.random.default_rng(0).normal(size=(32, 5)).astype("float32")
FROM_LOGITS = keras.losses.BinaryCrossentropy(from_logits=True)


def net(channels, activation=None, loss=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(channels, activation)])
    if loss is not None:
        model.compile("sgd", loss)
    return model


@pytest.mark.parametrize(
    ("channels", "activation", "loss", "kind"),
    [
        (4, None, FROM_LOGITS, "logit"),
        (1, None, FROM_LOGITS, "logit"),
        (4, "sigmoid", "binary_crossentropy", "probability"),
        (4, "softmax", "categorical_crossentropy", "probabilities"),
        (4, None, keras.losses.SparseCategoricalCrossentropy(from_logits=True), "logits"),
        (4, None, None, "logits"),
        (4, None, "mse", "values"),
        (1, None, None, "values"),
    ],
)
def test_kinds(channels, activation, loss, kind):
    model = net(channels, activation, loss)
    assert output_kinds(model, [model.predict(X, verbose=0)]) == [kind]


def test_each_output_has_the_kind_of_its_own_loss():
    inputs = keras.Input((5,))
    outputs = [layers.Dense(3, name=name)(inputs) for name in ("values", "classes", "flags")]
    model = keras.Model(inputs, [*outputs[:2], layers.Activation("sigmoid")(outputs[2])])
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", ["mse", sparse, "binary_crossentropy"])
    kinds = output_kinds(model, model.predict(X, verbose=0))
    assert kinds == ["values", "logits", "probability"]


def test_the_divergence_of_a_logit_is_that_of_its_probability():
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 16, 3))
    found = divergence("logit", p, q)
    a, b = (1 / (1 + np.exp(-v)) for v in (p, q))
    expected = (a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))).mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(divergence("probability", a, b), expected, rtol=1e-5)
    # A constant that is added to all channels moves no softmax.
    assert divergence("logit", p, p + 1).min() > 0.01


@pytest.mark.parametrize("max_measured", [200, 1])
def test_sensitivities_of_several_logits(max_measured):
    model = net(4, None, FROM_LOGITS)
    table = tfc.sensitivity(
        model, X, options=["int8", "int2"], max_measured=max_measured, verbose=0
    )
    assert table.measure == "KL divergence of yes and no of the sigmoid"
    rows = {row.option: row.divergence for row in table.rows}
    assert 0 < rows["int8"] < rows["int2"]


def test_probabilities_in_bfloat16_are_probabilities():
    third = 0.33398438
    outputs = np.full((4, 3), third, np.float32)
    assert abs(outputs[0].sum() - 1) > 1e-3
    assert output_kinds(net(3, "softmax"), [outputs]) == ["probabilities"]
