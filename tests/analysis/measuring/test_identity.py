"""Metrics and losses are told apart by what they compute, not by their names."""

import dataclasses
import functools
import random

import keras
import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from tfcompress.analysis.measuring.identity import identity_of
from tfcompress.analysis.measuring.metrics import resolve_metric

SCALE = 2.0


def of(value):
    return identity_of(value, "metric")


def compiled(source):
    """A function of a source, as an edited script has it."""
    namespace = {"np": np, "__name__": "__main__"}
    exec(source, namespace)
    return namespace["f"]


def scaled(factor):
    return lambda y, p: factor * (p.argmax(-1) == y)


def test_a_function_is_its_code_and_what_it_reads():
    one, other = (lambda y, p: np.abs(y - p)), (lambda y, p: np.square(y - p))
    assert of(one) != of(other)
    assert of(scaled(1.0)) == of(scaled(1.0)) != of(scaled(2.0))
    assert of(scaled(np.ones(3))) == of(scaled(np.ones(3))) != of(scaled(np.zeros(3)))
    source = "{}def f(y, p, at=0.5):\n    return np.mean(p > at)"
    assert of(compiled(source.format(""))) == of(compiled(source.format("\n\n")))
    assert of(compiled(source.format(""))) != of(compiled(source.format("").replace("0.5", "0.6")))
    helper = "def helper(p):\n    return p > {}\ndef f(y, p):\n    return helper(p)"
    assert of(compiled(helper.format(0.1))) != of(compiled(helper.format(0.2)))
    recursive = "def f(y, p):\n    return f(y[1:], p) if len(y) else 0"
    assert of(compiled(recursive)) == of(compiled(recursive))
    assert of(functools.partial(scaled, 1)) != of(functools.partial(scaled, 2))
    assert of(keras.losses.mean_squared_error) != of(keras.losses.mean_absolute_error)
    assert of(np.mean) != of(np.median)
    # A decorated function of a package, whose decorator holds objects of its own.
    assert of(lambda y, p: f1_score(y, p)) != of(lambda y, p: log_loss(y, p))


def test_a_global_that_a_function_reads(monkeypatch):
    def metric(y, p):
        return SCALE * np.mean(p)

    before = of(metric)
    assert of(metric) == before
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert of(metric) != before


class Scored:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, y, p):
        return self.weight * np.mean(p)


def test_objects_are_their_class_and_values():
    assert of(Scored(1)) == of(Scored(1)) != of(Scored(2))
    assert of(Scored(1).__call__) != of(Scored(2).__call__)
    first, second = keras.metrics.AUC(), keras.metrics.AUC()
    assert first.name != second.name
    assert of(first) == of(second) != of(keras.metrics.AUC(curve="PR"))
    top = keras.metrics.SparseTopKCategoricalAccuracy
    assert of(top(k=2)) == of(top(k=2)) != of(top(k=3))
    wrapped = [keras.metrics.MeanMetricWrapper(scaled(n), name="own") for n in (1, 2)]
    assert of(wrapped[0]) != of(wrapped[1])
    # What is resolved of it computes with it.
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    found = [resolve_metric(top(k=k, name="top"), model) for k in (2, 2, 3)]
    assert of(found[0]) == of(found[1]) != of(found[2])


@pytest.mark.parametrize("value", [random.Random(0), object()])
def test_what_cannot_be_told_from_another_one_is_refused(value):
    with pytest.raises(ValueError, match=r"Expected a metric whose code.*leave out path="):
        of(lambda y, p: value)
    looped: list = []
    looped.append(looped)
    with pytest.raises(ValueError, match="Expected a metric"):
        of(lambda y, p: looped)


def test_the_metric_of_a_model_is_known_without_the_name_that_keras_counts_up():
    def resolved(metric):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        model.compile("sgd", "mse", metrics=[metric])
        return dataclasses.replace(resolve_metric(None, model), name="")

    first, second = resolved(keras.metrics.AUC()), resolved(keras.metrics.AUC())
    assert of(first) == of(second) != of(resolved(keras.metrics.AUC(curve="PR")))
    thresholds = [resolved(keras.metrics.BinaryAccuracy(threshold=t)) for t in (0.5, 0.5, 0.9)]
    assert of(thresholds[0]) == of(thresholds[1]) != of(thresholds[2])
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    modes = [resolve_metric(scaled(1.0), model, mode) for mode in ("min", "max")]
    assert of(modes[0]) != of(modes[1])
