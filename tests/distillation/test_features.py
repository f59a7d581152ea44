"""Tapping layers by name and by tensor, in every kind of model."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.distillation import Distiller, FeatureDistillation
from tfcompress.distillation.features import FeatureTap, name_of_tensor

X = np.random.default_rng(0).random((4, 6)).astype("float32")


@pytest.fixture
def nested():
    """A model with a backbone inside, a shared layer and a `keras.ops` operation."""
    inner = keras.Input((6,))
    hidden = layers.Dense(5, activation="relu", name="inner_dense")(inner)
    backbone = keras.Model(inner, layers.Dense(6, name="twice")(hidden), name="backbone")
    shared = layers.Dense(6, name="shared")
    inputs = keras.Input((6,))
    a = shared(backbone(inputs))
    b = shared(a)
    total = keras.ops.add(a, b)
    outputs = layers.Dense(3, activation="softmax", name="twice_head")(total)
    return keras.Model(inputs, outputs, name="outer"), {"a": a, "b": b, "hidden": hidden}


def reference(model, x):
    backbone, shared = model.get_layer("backbone"), model.get_layer("shared")
    hidden = backbone.get_layer("inner_dense")(x)
    a = shared(backbone(x))
    return {"hidden": hidden, "a": a, "b": shared(a), "sum": a + shared(a)}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("backbone/inner_dense", "hidden"),
        ("inner_dense", "hidden"),
        ("shared:0", "a"),
        ("shared:1", "b"),
    ],
)
def test_names(nested, key, expected):
    model, _ = nested
    outputs, features = FeatureTap(model, [key])(X)
    np.testing.assert_allclose(features[key], reference(model, X)[expected], rtol=1e-6)
    np.testing.assert_allclose(outputs, model(X), rtol=1e-6)


def test_operations_and_whole_nested_models(nested):
    model, _ = nested
    add = next(op.name for op in model.operations if type(op).__name__ == "Add")
    _, features = FeatureTap(model, [add, "backbone"])(X)
    np.testing.assert_allclose(features[add], reference(model, X)["sum"], rtol=1e-6)
    np.testing.assert_allclose(features["backbone"], model.get_layer("backbone")(X), rtol=1e-6)


@pytest.mark.parametrize("tensor", ["a", "b", "hidden"])
def test_tensors_are_named(nested, tensor):
    model, tensors = nested
    key = name_of_tensor(model, tensors[tensor])
    _, features = FeatureTap(model, [key])(X)
    np.testing.assert_allclose(features[key], reference(model, X)[tensor], rtol=1e-6)


def test_tensor_of_another_model(nested):
    model, _ = nested
    with pytest.raises(ValueError, match="the output of one layer of model 'outer'"):
        name_of_tensor(model, layers.Dense(3)(keras.Input((6,))))


def test_sequential_and_multiple_outputs():
    sequential = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="d"), layers.ReLU()])
    _, features = FeatureTap(sequential, ["d"])(X)
    np.testing.assert_allclose(features["d"], sequential.get_layer("d")(X))
    inputs = keras.Input((6,))
    two = keras.Model(inputs, {"p": layers.Dense(2)(inputs), "q": layers.Dense(3)(inputs)})
    _, features = FeatureTap(two, ["p", 1])(X)
    outputs = two(X)
    np.testing.assert_allclose(features["p"], outputs["p"])
    np.testing.assert_allclose(features[1], outputs["q"])


def test_nothing_is_left_behind(nested):
    model, _ = nested
    layer = model.get_layer("shared")
    FeatureTap(model, ["shared:0"])(X)
    assert "call" not in vars(layer)


def test_unknown_names_suggest_near_ones(nested):
    model, _ = nested
    with pytest.raises(ValueError, match=r"Did you mean .*inner_dense"):
        FeatureTap(model, ["inner_dens"])
    with pytest.raises(ValueError, match=r"called once.*Received: 2 calls.*shared:0"):
        FeatureTap(model, ["shared"])(X)
    with pytest.raises(ValueError, match="Expected a name such as"):
        FeatureTap(model, ["shared:one"])
    with pytest.raises(ValueError, match="one of 1 output"):
        FeatureTap(model, [3])(X)


def test_distiller_takes_tensors_and_saves_their_names(nested, tmp_path):
    model, tensors = nested
    inputs = keras.Input((6,))
    feature = layers.Dense(2, name="small")(inputs)
    student = keras.Model(inputs, layers.Dense(3)(feature))
    loss = FeatureDistillation(tensors["b"], feature)
    with pytest.raises(ValueError, match="KerasTensor, which cannot be saved"):
        loss.get_config()
    distiller = Distiller(model, student, loss, student_loss_weight=0.0)
    assert (loss.teacher_layer, loss.student_layer) == ("shared:1", "small")
    distiller.compile("sgd", run_eagerly=True)
    before = distiller.evaluate(X, verbose=0)
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    assert again.evaluate(X, verbose=0) == pytest.approx(before, rel=1e-6)
