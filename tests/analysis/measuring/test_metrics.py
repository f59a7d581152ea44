"""Metrics have the values that `evaluate` of Keras prints, and a direction that is known."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.analysis.measuring.metrics import resolve_metric

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 6)).astype("float32")
W = RNG.normal(size=(6, 4))
VALUES = (X @ W).astype("float32")
CLASSES = VALUES.argmax(1)
SEVERAL = (VALUES > 0.3).astype("float32")
FROM_LOGITS = keras.losses.BinaryCrossentropy(from_logits=True)
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(channels, activation=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            *(keras.Input((6,)), layers.Dense(8, "relu", name="hidden")),
            layers.Dense(channels, activation, name="out"),
        ]
    )


def mean_gap(y_true, y_pred):
    return keras.ops.mean(keras.ops.abs(y_true - y_pred), -1)


class Off(keras.metrics.MeanAbsoluteError):
    pass


CASES = {
    "several": ("sigmoid", "binary_crossentropy", "binary_accuracy", SEVERAL),
    "threshold": (
        "sigmoid",
        "binary_crossentropy",
        keras.metrics.BinaryAccuracy(threshold=0.8),
        SEVERAL,
    ),
    "several logits": (None, FROM_LOGITS, keras.metrics.BinaryAccuracy(threshold=0.0), SEVERAL),
    "plain name": ("sigmoid", "binary_crossentropy", "accuracy", SEVERAL),
    "plain name, logits": (None, FROM_LOGITS, "accuracy", SEVERAL),
    "one threshold": (
        "sigmoid",
        "binary_crossentropy",
        keras.metrics.BinaryAccuracy(threshold=0.4),
        SEVERAL[:, :1],
    ),
    "one-hot": ("softmax", "categorical_crossentropy", "acc", np.eye(4)[CLASSES]),
    "classes": (None, SPARSE, "accuracy", CLASSES),
    "top 2": (None, SPARSE, keras.metrics.SparseTopKCategoricalAccuracy(k=2), CLASSES),
    "auc": ("sigmoid", "binary_crossentropy", keras.metrics.AUC(), SEVERAL),
    "mae": (None, "mse", "mae", VALUES),
    "root": (None, "mse", keras.metrics.RootMeanSquaredError(), VALUES),
    "own function": (None, "mse", mean_gap, VALUES),
    "own class": (None, "mse", Off(name="years_off"), VALUES),
    "whole labels": (None, "mse", "mse", np.round(VALUES).astype("int64")),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True])
def test_values_are_those_of_evaluate(case, weighted):
    activation, loss, metric, labels = CASES[case]
    if isinstance(metric, keras.metrics.Metric):
        # Keras leaves the state of the last evaluation in it.
        metric = type(metric).from_config(metric.get_config())
    model = net(labels.shape[1] if labels.ndim > 1 else 4, activation)
    argument = "weighted_metrics" if weighted else "metrics"
    model.compile("sgd", loss, **{argument: [metric]})
    # Weights are ignored by plain metrics.
    weights = np.arange(96, dtype="float32")
    evaluated = model.evaluate(X, labels, sample_weight=weights, verbose=0, return_dict=True)
    (name,) = set(evaluated) - {"loss"}
    found = tfc.evaluate_file(model, model, (X, labels, weights))
    assert found == pytest.approx(evaluated[name], abs=1e-5)
    assert resolve_metric(None, model, "max").name == name
    if isinstance(metric, str | keras.metrics.Metric) and not weighted:
        assert tfc.evaluate_file(model, model, (X, labels), metric=metric) == found
    # By the name that `evaluate` prints, also of a function of one's own.
    assert tfc.evaluate_file(model, model, (X, labels, weights), metric=name) == found


def test_means_over_samples_are_paired():
    model = net(4, "sigmoid")
    model.compile(
        "sgd", "binary_crossentropy", metrics=[keras.metrics.BinaryAccuracy(threshold=0.5)]
    )
    outputs = model.predict(X, verbose=0)
    found = resolve_metric("binary_accuracy", model).per_sample(SEVERAL, outputs)
    np.testing.assert_allclose(found[0], ((outputs > 0.5) == (SEVERAL > 0.5)).mean(1), rtol=1e-6)
    assert found[1] is None
    assert resolve_metric("auc", model).per_sample(SEVERAL, outputs) is None


def test_one_logit_is_a_yes_from_zero_on_as_documented():
    model = net(1)
    model.compile("sgd", FROM_LOGITS, metrics=["accuracy"])
    outputs = model.predict(X, verbose=0)
    expected = ((outputs > 0) == (SEVERAL[:, :1] > 0.5)).mean()
    assert tfc.evaluate_file(model, model, (X, SEVERAL[:, :1])) == pytest.approx(expected)


def two_outputs(as_dict=False):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    value = layers.Dense(1, name="value")(inputs)
    other = layers.Dense(1, name="another")(inputs)
    return keras.Model(inputs, {"b": value, "a": other} if as_dict else [value, other])


@pytest.mark.parametrize(
    ("as_dict", "metrics", "name"),
    [
        (False, [["mae"], []], "value_mae"),
        (False, [[], ["mae"]], "another_mae"),
        (False, {"another": ["mse"]}, "another_mse"),
        (True, {"b": ["mae"]}, "b_mae"),
        (True, {"a": mean_gap}, "a_mean_gap"),
        (True, [["mae"], None], "a_mae"),
    ],
)
def test_a_metric_of_one_output_is_of_that_output(as_dict, metrics, name):
    model = two_outputs(as_dict)
    model.compile("sgd", "mse", metrics=metrics)
    labels = [VALUES[:, :1], 100 * VALUES[:, 1:2]]
    given = {"b": labels[0], "a": labels[1]} if as_dict else labels
    evaluated = model.evaluate(X, given, verbose=0, return_dict=True)
    data = (X, given if as_dict else tuple(labels))
    assert tfc.evaluate_file(model, model, data) == pytest.approx(evaluated[name], rel=1e-5)
    assert resolve_metric(None, model, "min").name == name
    with pytest.raises(ValueError, match=r"one output for the metric 'mse'.*Received: 2 outputs"):
        tfc.evaluate_file(model, model, data, metric="mse")


def test_several_weights_of_several_outputs():
    model = two_outputs()
    model.compile("sgd", "mse", weighted_metrics=[None, ["mae"]])
    labels = [VALUES[:, :1], VALUES[:, 1:2]]
    weights = [np.ones(96, "float32"), np.arange(96, dtype="float32")]
    evaluated = model.evaluate(X, labels, sample_weight=weights, verbose=0, return_dict=True)
    found = tfc.evaluate_file(model, model, (X, tuple(labels), tuple(weights)))
    assert found == pytest.approx(evaluated["another_mae"], rel=1e-5)


def test_a_loaded_model_has_its_metrics(tmp_path):
    model = net(4)
    model.compile("sgd", "mse", metrics=[mean_gap])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", {"mean_gap": mean_gap})
    expected = np.abs(VALUES - model.predict(X, verbose=0)).mean()
    assert tfc.evaluate_file(loaded, loaded, (X, VALUES)) == pytest.approx(expected, rel=1e-5)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(8, "relu"), layers.Dense(4)

    def call(self, x):
        return self.out(self.hidden(x))


def test_a_subclassed_model_keeps_what_it_was_compiled_with():
    keras.utils.set_random_seed(0)
    model = Subclassed()
    model.compile("sgd", "mse", metrics=["mae"])
    expected = model.evaluate(X, VALUES, verbose=0, return_dict=True)["mae"]
    assert tfc.evaluate_file(model, model, (X, VALUES)) == pytest.approx(expected, rel=1e-5)
    # Outputs of a regression are values, not logits, whatever class the model is of.
    table = tfc.sensitivity(model, X, options=["int8"], verbose=0)
    assert table.measure == "squared error over variance"
    found = tfc.accuracy_control(
        model, (X[48:], VALUES[48:]), calibration_data=X[:48], max_drop=0.5, verbose=0
    )
    assert found.metric == "mae"
    outputs = model.predict(X[48:], verbose=0)
    assert found.baseline == pytest.approx(np.abs(outputs - VALUES[48:]).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [("mse", VALUES), ("mse", VALUES[:, :1]), (None, SEVERAL), (FROM_LOGITS, SEVERAL)],
)
def test_without_a_metric_labels_that_are_no_classes_are_refused(loss, labels):
    model = net(labels.shape[1])
    if loss is not None:
        model.compile("sgd", loss)
    with pytest.raises(ValueError, match=r"Expected a metric.*not one class.*Pass metric="):
        tfc.accuracy_control(model, (X[48:], labels[48:]), calibration_data=X[:48], verbose=0)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("mape", r"_error' can compare with the outputs. Received: labels of shape \(48,\)"),
        ("accurate", "name of a Keras metric.*'accurate'; the model was compiled with 'accuracy'"),
        (lambda y, p: 0.5, "whether more of it is better.*mode='max' or mode='min'"),
        (keras.metrics.Mean(name="m"), "whether more of it is better. Received: 'm'"),
    ],
)
def test_what_is_no_metric_of_the_data_is_refused_before_any_work(monkeypatch, metric, message):
    def work(*args, **options):
        raise AssertionError("the sensitivities were measured first")

    monkeypatch.setattr("tfcompress.analysis.search.control.sensitivity", work)
    monkeypatch.setattr("tfcompress.analysis.search.search.sensitivity", work)
    model = net(4)
    model.compile("sgd", SPARSE, metrics=["accuracy"])
    held = (X[48:], CLASSES[48:])
    with pytest.raises(ValueError, match=message):
        tfc.accuracy_control(model, held, calibration_data=X[:48], metric=metric, verbose=0)
    with pytest.raises(ValueError, match=message):
        tfc.search(model, (X[:48], CLASSES[:48]), held, metric=metric, max_drop=0.1, verbose=0)


@pytest.mark.parametrize("weights", [np.zeros(48), np.linspace(-1, 1, 48), np.full(48, np.nan)])
def test_weights_of_no_mean_are_refused_before_any_work(monkeypatch, weights):
    def work(*args, **options):
        raise AssertionError("the sensitivities were measured first")

    monkeypatch.setattr("tfcompress.analysis.search.control.sensitivity", work)
    model = net(4)
    model.compile("sgd", SPARSE, weighted_metrics=["accuracy"])
    held = (X[48:], CLASSES[48:], weights.astype("float32"))
    with pytest.raises(ValueError, match="sample weights >= 0, some of them above 0"):
        tfc.accuracy_control(model, held, calibration_data=X[:48], verbose=0)
    # No plain metric reads them.
    model.compile("sgd", SPARSE, metrics=["accuracy"])
    assert 0 <= tfc.evaluate_file(model, model, held) <= 1


def test_the_mode_decides_where_nothing_else_tells():
    model = net(4)
    model.compile("sgd", "mse", metrics=[keras.metrics.KLDivergence()])
    assert resolve_metric(None, model).minimized
    assert resolve_metric(keras.metrics.MeanAbsoluteError(name="years_off"), model).minimized
    assert not resolve_metric(keras.metrics.MeanAbsoluteError(), model, "max").minimized
    assert resolve_metric(lambda y, p: 0.5, model, "min").minimized
    with pytest.raises(ValueError, match=r"`mode` must be 'auto', 'min' or 'max'. Received: 'up'"):
        resolve_metric(None, model, "up")


def test_a_mode_turns_the_drop_round():
    model = net(4)
    model.compile("sgd", "mse", metrics=["mae"])
    tables = [
        tfc.sensitivity(model, (X, VALUES), options=["sparsity=0.5"], metric=metric, mode=mode)
        for metric, mode in (("mae", "auto"), (mean_gap, "min"), (mean_gap, "max"))
    ]
    drops = [{row.target: row.drop for row in table.rows} for table in tables]
    assert drops[0] == pytest.approx(drops[1], rel=1e-4)
    assert drops[0] == pytest.approx({name: -drop for name, drop in drops[2].items()}, rel=1e-4)


@pytest.mark.parametrize("argument", ["metrics", "weighted_metrics", None])
@pytest.mark.parametrize("metric", ["accuracy", keras.metrics.SparseCategoricalAccuracy])
def test_padded_steps_do_not_count(argument, metric):
    keras.utils.set_random_seed(0)
    tokens = RNG.integers(1, 9, (40, 6)).astype("int32")
    lengths = RNG.integers(1, 7, 40)
    tokens[np.arange(6) >= lengths[:, None]] = 0
    labels = tokens % 3
    inputs = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(9, 4, mask_zero=True)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.LSTM(4, return_sequences=True)(hidden)))
    model.compile(
        "sgd",
        SPARSE,
        **(
            {}
            if argument is None
            else {argument: [keras.metrics.get(metric) if isinstance(metric, type) else metric]}
        ),
    )
    weights = np.arange(240, dtype="float32").reshape(40, 6)
    found = tfc.evaluate_file(model, model, (tokens, labels, weights))
    right = model.predict(tokens, verbose=0).argmax(-1) == labels
    counted = (tokens != 0) * (weights if argument == "weighted_metrics" else 1)
    assert found == pytest.approx(np.sum(right * counted) / np.sum(counted))
    assert found != pytest.approx(right.mean(), abs=1e-3)
    if argument is not None:
        evaluated = model.evaluate(tokens, labels, sample_weight=weights, verbose=0)
        assert found == pytest.approx(evaluated[1], abs=1e-6)
