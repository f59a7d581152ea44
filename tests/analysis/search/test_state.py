"""The folder of a search: calls with other budgets, metrics or losses than the earlier one."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(160, 10)).astype("float32"), np.arange(160) % 4
MACS = 10 * 24 + 24 * 4


def net(loss=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((10,), name="x")
    h = layers.Dense(24, "relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(4, name="logits")(h))
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", crossentropy if loss is None else loss, metrics=["accuracy"])
    return model


def run(path, model=None, **options):
    given = {"options": ["int4"], "epochs": 0, "trials": 1, "samples": 32, "verbose": 0}
    given |= {"budget": tfc.Bytes(1e6), "path": path, **options}
    return tfc.search(model or net(), (X[:80], Y[:80]), (X[80:], Y[80:]), **given)


def test_costs_are_those_of_the_budgets_of_the_call(tmp_path):
    slow, fast = (tfc.Latency(1.0, table={"FULLY_CONNECTED": n}) for n in (1000.0, 10.0))
    first = run(tmp_path, budget=tfc.Bytes(1e6))
    trained = (tmp_path / f"{first.best.point.assignment.key}.tflite").stat().st_mtime_ns
    for budget, price in ((slow, 1000.0), (fast, 10.0)):
        found = run(tmp_path, budget=budget)
        assert budget.of(found.best.costs) == pytest.approx(MACS * price / 1e6)
        assert found.best.fits
    counted = tfc.Instructions(1.0, "cortex-a53")
    found = run(tmp_path, budget=counted)
    file = tmp_path / f"{found.best.point.assignment.key}.tflite"
    assert counted.of(found.best.costs) == tfc.count_instructions(file, "cortex-a53")
    timed = run(tmp_path, budget=tfc.Latency(1000.0))
    assert timed.best.costs.milliseconds > 0
    # A time is measured once, and nothing is trained again.
    assert run(tmp_path, budget=tfc.Latency(1000.0)).best == timed.best
    assert file.stat().st_mtime_ns == trained


def test_another_metric_or_loss_of_the_same_name_is_refused(tmp_path):
    def right(y, p):
        return (p.argmax(-1) == y).astype("float32")

    first = run(tmp_path, metric=lambda y, p: right(y, p), mode="max")
    again = run(tmp_path, metric=lambda y, p: right(y, p), mode="max")
    assert (again.baseline, again.best) == (first.baseline, first.best)
    with pytest.raises(ValueError, match="whose metric is another one"):
        run(tmp_path, metric=lambda y, p: np.full(len(y), 7.0), mode="max")

    def loss(factor):
        def own(y, p):
            return factor * keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)

        return own

    other = tmp_path / "other"
    found = run(other, net(loss(1.0)), metric="accuracy")
    assert run(other, net(loss(1.0)), metric="accuracy").best == found.best
    with pytest.raises(ValueError, match="whose loss is another one"):
        run(other, net(loss(2.0)), metric="accuracy")


def test_a_metric_that_cannot_be_told_from_another_one_is_refused_for_a_folder(tmp_path):
    unknown = object()
    with pytest.raises(ValueError, match=r"Expected a metric whose code.*leave out path="):
        run(tmp_path, metric=lambda y, p: (unknown, np.ones(len(y)))[1], mode="max")
    assert run(None, metric=lambda y, p: (unknown, np.ones(len(y)))[1], mode="max").best.metric == 1
