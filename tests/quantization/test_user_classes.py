"""A model of the user's own class keeps its train step through every technique."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc


class Weighted(keras.Model):
    """A train step, a test step and a loss of its own, and an argument."""

    def __init__(self, inputs, outputs, factor=1.0, **kwargs):
        super().__init__(inputs, outputs, **kwargs)
        self.factor = factor
        self.seen = keras.metrics.Mean(name="seen")

    @property
    def metrics(self):
        return [self.seen]

    def train_step(self, data):
        results = super().train_step(data)
        self.seen.update_state(self.factor)
        return {**results, "seen": self.seen.result()}

    def test_step(self, data):
        return {"own": keras.ops.convert_to_tensor(7.0)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.factor * super().compute_loss(x, y, y_pred, sample_weight)


def graph():
    inputs = keras.Input((8,), name="features")
    x = layers.Dense(16, activation="relu", name="hidden")(inputs)
    return inputs, layers.Dense(2, name="logits")(x)


X = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
Y = np.zeros((32, 2), "float32")


def check_class(model):
    assert isinstance(model, Weighted)
    assert model.factor == 3.0
    model.compile("sgd", "mse")
    history = model.fit(X, Y, batch_size=16, verbose=0).history
    assert history["seen"] == [3.0]
    assert model.evaluate(X, Y, verbose=0, return_dict=True) == {"own": 7.0}


def test_the_class_is_kept_by_every_technique_and_saved(tmp_path):
    model = Weighted(*graph(), factor=3.0, name="net")
    quantized = tfc.quantize(model, calibration_data=X)
    assert isinstance(quantized, type(tfc.quantize(keras.Model(*graph()), calibration_data=X)))
    assert [o.name for o in quantized.layers] != [o.name for o in model.layers]
    check_class(quantized)
    path = tmp_path / "net.keras"
    quantized.save(path)
    loaded = keras.saving.load_model(path, custom_objects={"Weighted": Weighted})
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), quantized.predict(X, verbose=0))
    assert loaded.factor == 3.0
    with pytest.raises(ValueError, match="Expected the class 'Weighted'"):
        keras.saving.load_model(path)
    again = keras.models.clone_model(quantized)
    assert isinstance(again, Weighted)
    for edited in (
        tfc.cluster(model, 4),
        tfc.shrink(model, target_parameters=0.6),
        tfc.factorize(model, ranks={"hidden": 2}),
        tfc.strip(quantized),
        tfc.shrink(quantized, target_parameters=0.6),
        tfc.cluster(quantized, 4),
    ):
        check_class(edited)


def test_a_class_that_cannot_be_kept_is_named():
    class Builds(keras.Model):
        def __init__(self, width):
            inputs, outputs = graph()
            super().__init__(inputs, outputs)

        def train_step(self, data):
            return {}

    class Stack(keras.Sequential):
        def compute_loss(self, *args, **kwargs):
            return 0.0

    for model, method in (
        (Builds(3), "train_step of Builds"),
        (Stack([keras.Input((8,)), layers.Dense(2)]), "compute_loss of Stack"),
    ):
        with pytest.warns(UserWarning, match=method):
            assert tfc.quantize(model).name == model.name
