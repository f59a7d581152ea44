"""A user's own observers: saved, loaded, cloned, and moved by their own rule."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize


@keras.saving.register_keras_serializable("own_observers")
@dataclasses.dataclass(frozen=True)
class Half(tfc.Observer):
    """A share of the full range, from calibration."""

    share: float = 0.5

    def estimate(self, values, levels, symmetric):
        return self.share * float(values.min()), self.share * float(values.max())


@keras.saving.register_keras_serializable("own_observers")
@dataclasses.dataclass(frozen=True)
class LastBatch(Half):
    """A share of the full range of the last batch."""

    def update(self, state, batch):
        return tf.stack([self.share * tf.reduce_min(batch), self.share * tf.reduce_max(batch), 1.0])


@keras.saving.register_keras_serializable("own_observers")
@dataclasses.dataclass(frozen=True)
class Between(tfc.Observer):
    """The range between two percentiles."""

    ends: tuple[float, float] = (1.0, 99.0)

    def estimate(self, values, levels, symmetric):
        return tuple(np.percentile(values, self.ends))


class Unregistered(Half):
    """Half of the range; known by its name as a custom object alone."""


class NoRule(Half):
    """Says that it moves, and not how."""

    every_batch = True


def quantized(observer):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="d", activation="relu")])
    scheme = tfc.Scheme(
        tfc.WeightScheme(observer=observer), tfc.ActivationScheme(observer=observer)
    )
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    return tfc.quantize(model, scheme, calibration_data=x), x


def quantizers(model):
    """All but the output's, which keeps every value under a default observer."""
    return [layer for layer in model.layers if isinstance(layer, FakeQuantize)][:-1]


@pytest.mark.parametrize("observer", [Half(0.4), LastBatch(0.7)], ids=lambda o: type(o).__name__)
def test_a_registered_observer_is_saved_loaded_and_cloned(observer, tmp_path):
    model, x = quantized(observer)
    first = quantizers(model)[0]
    share = observer.share
    assert first.range == pytest.approx((share * x.min(), share * x.max()), abs=0.02)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    cloned = keras.models.clone_model(model)
    for copy in (loaded, cloned):
        assert all(q.scheme.observer == observer for q in quantizers(copy))
        transform = copy.get_layer("d").transforms["kernel"][0]
        assert transform.scheme.observer == observer


def test_an_observer_that_is_not_registered_is_a_custom_object(tmp_path):
    custom = {"Unregistered": Unregistered}
    model, x = quantized(Unregistered(0.25))
    with keras.saving.custom_object_scope(custom):
        cloned = keras.models.clone_model(model)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", custom_objects=custom)
    np.testing.assert_array_equal(loaded(x), model(x))
    for copy in (loaded, cloned):
        assert {type(q.scheme.observer) for q in quantizers(copy)} == {Unregistered}


def test_a_loaded_model_trains_where_an_option_is_a_tuple(tmp_path):
    model, x = quantized(Between((2.0, 98.0)))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert {q.scheme.observer for q in quantizers(loaded)} == {Between((2.0, 98.0))}
    loaded.compile("sgd", "mse")
    loaded.fit(x, np.zeros((64, 3)), 32, verbose=0)


def test_an_observer_without_an_estimate_is_named():
    class Nothing(tfc.Observer):
        pass

    with pytest.raises(NotImplementedError, match=r"implements estimate.*Received: Nothing"):
        quantized(Nothing())


def test_an_observer_that_moves_does_so_by_its_own_rule():
    model, x = quantized(LastBatch(0.5))
    first = quantizers(model)[0]
    model.compile("sgd", "mse")
    last = 10 * x[:8]
    model.fit(np.concatenate([x[:8], last]), np.zeros((16, 3)), 8, shuffle=False, verbose=0)
    assert first.range == pytest.approx((0.5 * last.min(), 0.5 * last.max()), abs=0.1)
    before = first.range
    first.frozen.assign(1.0)
    model.fit(x[:8], np.zeros((8, 3)), 8, verbose=0)
    assert first.range == before


def test_an_observer_that_does_not_move_keeps_its_range():
    model, x = quantized(Half(0.5))
    before = quantizers(model)[0].range
    model.compile("sgd", "mse")
    model.fit(10 * x, np.zeros((64, 3)), 32, verbose=0)
    assert quantizers(model)[0].range == before


@pytest.mark.parametrize("scheme", [tfc.ActivationScheme, tfc.WeightScheme])
def test_one_that_moves_without_a_rule_is_refused(scheme):
    with pytest.raises(ValueError, match=r"implement update\(state, batch\). Received: NoRule"):
        scheme(observer=NoRule())
