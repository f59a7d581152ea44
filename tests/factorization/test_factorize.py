"""Models of low rank: the same function, fewer multiply-accumulates, plain layers."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.export.tflite import export_tflite
from tfcompress.factorization import Form, factorize, plan_factorization
from tfcompress.factorization.ranks import choose_forms
from tfcompress.model.macs import count_macs
from tfcompress.quantization.quantize import quantize


def images(count=8, size=16):
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    """Every kind of layer that can be factorized, strided and dilated; and some that cannot."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(24, (3, 5), strides=(2, 1), padding="same", name="strided")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(24, 3, dilation_rate=2, padding="same", name="dilated")(x)
    x = layers.Conv2D(32, 1, strides=2, activation="relu", name="pointwise")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(32, 3, groups=4, padding="same", name="grouped")(x)
    x = layers.Reshape((4 * 8, 32))(x)
    x = layers.Conv1D(24, 5, padding="causal", name="sequence")(x)
    outputs = layers.Dense(10, name="logits")(layers.Dense(40, name="wide")(layers.Flatten()(x)))
    return keras.Model(inputs, outputs, name="every")


RANKS = {
    "first": (3, 16),
    "strided": 48,
    "dilated": 72,
    "pointwise": 24,
    "sequence": 24,
    "wide": 40,
}


def test_full_rank_changes_nothing_and_so_is_not_done(model):
    plan = plan_factorization(model, ranks=RANKS)
    assert not plan.forms
    assert all("grow" in plan.left_alone[name] for name in RANKS)


def test_every_method_computes_its_kernel(model, monkeypatch):
    monkeypatch.setattr("tfcompress.factorization.forms.Forms.pays", lambda self, form: True)
    x = images()
    expected = model.predict(x, verbose=0)
    both = {"strided": (16, 24), "dilated": (24, 24)}
    for ranks, methods in (
        (RANKS, ("svd", "spatial", "tucker2")),
        ({**RANKS, **both}, ("svd", "tucker2")),
        ({**RANKS, "first": 16, "strided": 24, "dilated": 24}, ("svd",)),
    ):
        plan = plan_factorization(model, ranks=ranks, methods=methods)
        assert set(plan.forms) == set(RANKS)
        assert max(form.error for form in plan.forms.values()) < 1e-9
        full = factorize(model, ranks=ranks, methods=methods)
        np.testing.assert_allclose(full.predict(x, verbose=0), expected, atol=2e-4)
        assert count_macs(full) == plan.total_macs[1]
        assert type(full.get_layer("logits")) is layers.Dense


def test_half_the_macs_train_save_and_export(model, tmp_path):
    x = images()
    before = [w.copy() for w in model.get_weights()]
    plan = plan_factorization(model, target_macs=0.5)
    half = factorize(model, target_macs=0.5)
    macs = count_macs(model)
    assert count_macs(half) == plan.total_macs[1] <= macs / 2
    assert count_macs(half) > 0.35 * macs
    assert set(plan.left_alone) >= {"depthwise", "grouped"}
    assert "groups" in str(plan)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert {type(layer).__module__.split(".")[0] for layer in half.layers} == {"keras"}
    half.compile("sgd", "mse")
    half.fit(x, np.zeros((8, 10), np.float32), epochs=1, verbose=0)
    half.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), half.predict(x, verbose=0))
    small = factorize(model, ranks={"wide": 4})
    report = export_tflite(
        quantize(small, calibration_data=x), tmp_path / "s.tflite", allow_float=True
    )
    assert {"wide_in", "wide"} <= {row.name for row in report.layers}


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_energy_is_kept_and_a_layer_that_would_grow_is_left_alone(model, energy):
    plan = plan_factorization(model, energy=energy)
    assert plan.forms
    for name, form in plan.forms.items():
        assert form.error <= 1 - energy + 1e-9, name
        assert form.macs < plan.macs[name]
    small = factorize(model, energy=energy)
    assert count_macs(small) == plan.total_macs[1] < plan.total_macs[0]
    grown = plan_factorization(model, energy=1.0)
    assert not grown.forms
    assert "grow" in grown.left_alone["wide"]


def test_data_makes_the_outputs_nearer():
    random = np.random.default_rng(1)
    inputs = keras.Input((8, 8, 6))
    x = layers.Conv2D(12, 3, name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(16, name="dense")(layers.Conv2D(12, 1, name="p")(x)))
    # Inputs of four dimensions in truth, as images have.
    x = random.normal(size=(96, 8, 8, 2)) @ random.normal(size=(2, 6))
    x = (x + 0.05 * random.normal(size=x.shape)).astype(np.float32)
    expected = model.predict(x, verbose=0)
    errors = {}
    for name, data in (("plain", None), ("weighted", x), ("batches", [x[:48], x[48:]])):
        small = factorize(model, ranks={"conv": 6, "dense": 3}, methods=("svd",), data=data)
        errors[name] = np.mean((small.predict(x, verbose=0) - expected) ** 2)
    assert errors["weighted"] < 0.5 * errors["plain"]
    assert errors["batches"] == pytest.approx(errors["weighted"], rel=1e-3)
    plan = plan_factorization(model, ranks=2, data=x)
    assert {form.method for form in plan.forms.values()} == {"spatial", "svd"}


def test_budgets_are_met_with_the_least_error():
    random = np.random.default_rng(0)
    options = {
        name: [
            Form("svd", (i,), float(e), int(m), 1)
            for i, (e, m) in enumerate(
                zip(random.random(5), random.integers(1, 90, 5), strict=True)
            )
        ]
        for name in "abcd"
    }
    macs = dict.fromkeys("abcd", 100)
    weights = {"a": 3.0, "b": 1.0, "c": 0.5, "d": 1.0}

    def cost(choice):
        return sum(macs[n] if f is None else f.macs for n, f in choice)

    def error(choice):
        return sum(0 if f is None else weights[n] * f.error for n, f in choice)

    every = list(
        itertools.product(*([(n, f) for f in (None, *forms)] for n, forms in options.items()))
    )
    for budget in (60, 150, 250, 399, 400):
        allowed = [error(c) for c in every if cost(c) <= budget]
        if not allowed:
            with pytest.raises(ValueError, match="at the least"):
                choose_forms(options, macs, budget, weights)
            continue
        found = choose_forms(options, macs, budget, weights)
        assert cost(found.items()) <= budget
        assert error(found.items()) == pytest.approx(min(allowed), rel=1e-3)


def test_shared_and_nested_layers():
    shared = layers.Dense(32, name="shared")
    inner = keras.Sequential([keras.Input((32,)), layers.Dense(32, name="dense")], name="inner")
    inputs = keras.Input((32,))
    x = shared(shared(inputs))
    model = keras.Model(inputs, inner(x))
    small = factorize(model, ranks={"shared": 4, "inner/dense": 5})
    assert count_macs(small) == 2 * 2 * 32 * 4 + 2 * 32 * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"ranks": 2, "energy": 0.5}, "exactly one"),
        ({"energy": 1.5}, "energy"),
        ({"ranks": 0}, "from 1 on"),
        ({"ranks": {"wid": 3}}, "wide"),
        ({"ranks": {"wide": (2, 3)}}, "two for Tucker-2"),
        ({"target_macs": 1.5}, "target_macs"),
        ({"target_macs": 10}, "at the least"),
        ({"energy": 0.5, "sensitivity": {"wide": 1.0}}, "with target_macs"),
        ({"target_macs": 0.5, "sensitivity": {"wide": -1.0}}, "from 0 on"),
        ({"ranks": 2, "methods": ("qr",)}, "methods"),
        ({"ranks": 2, "data": []}, "at least one batch"),
    ],
)
def test_mistakes(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        factorize(model, **arguments)


def test_a_compressed_model_comes_too_late():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8)])
    with pytest.raises(ValueError, match="factorize before"):
        factorize(quantize(model), ranks=2)


def test_covariances_are_the_same_in_slices(model, monkeypatch):
    whole = plan_factorization(model, energy=0.9, data=images())
    monkeypatch.setattr("tfcompress.factorization.covariance._MOST_VALUES", 1)
    sliced = plan_factorization(model, energy=0.9, data=images())
    assert {n: f.ranks for n, f in sliced.forms.items()} == {
        n: f.ranks for n, f in whole.forms.items()
    }
    for name, form in whole.forms.items():
        assert sliced.forms[name].error == pytest.approx(form.error, rel=1e-6)


def test_a_factorized_model_is_factorized_further(model):
    once = factorize(model, energy=0.5)
    twice = factorize(once, ranks={"wide": 2, "wide_in": 2})
    names = [layer.name for layer in twice.layers]
    assert len(set(names)) == len(names)
    assert twice.count_params() < once.count_params() < model.count_params()
    assert {"wide", "wide_in"} <= set(names)


@pytest.mark.parametrize("key", ["wide", "w.*e", layers.Dense])
def test_sensitivity_is_looked_up_like_everything_else(model, key):
    plain = plan_factorization(model, target_macs=0.5)
    heavy = plan_factorization(model, target_macs=0.5, sensitivity={key: 1e4})
    rank = {name: form.ranks for name, form in plain.forms.items()}
    assert "wide" not in heavy.forms or heavy.forms["wide"].ranks > rank["wide"]
