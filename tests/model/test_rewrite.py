"""Rebuilding models and carrying weights over."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.model.graph import Graph
from tfcompress.model.rewrite import as_float32, copy_variables, fresh, rebuild
from tfcompress.quantization.placement.from_graph import requested_floats


def small(dtype=None):
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(3, 3, name="conv", dtype=dtype)(inputs)
    x = layers.BatchNormalization(name="norm", dtype=dtype)(x)
    return keras.Model(inputs, layers.Flatten(name="flat", dtype=dtype)(x), name="small")


def test_a_replaced_layer_gets_the_weights_and_trainable_of_the_original():
    model = small()
    model.get_layer("conv").trainable = False
    graph = Graph.from_model(model)
    new = layers.Conv2D(3, 3, name="conv", activation="relu")
    copy = rebuild(graph, {model.get_layer("conv"): new})
    assert copy.get_layer("conv") is new
    assert not new.trainable
    np.testing.assert_array_equal(new.kernel, model.get_layer("conv").kernel)
    assert copy.name == "small"
    assert [layer.name for layer in copy.layers] == [layer.name for layer in model.layers]


@keras.saving.register_keras_serializable("test_rewrite")
class Unnamed(layers.Layer):
    """Weights without names and inner layers without names, each twice in the same shape."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [layers.Dense(2), layers.Dense(2)]

    def build(self, shape):
        self.factors = [self.add_weight(shape=(2,), initializer="ones") for _ in range(2)]
        for part in self.parts:
            part.build(shape)

    def call(self, x):
        first, second = (part(x) * f for part, f in zip(self.parts, self.factors, strict=True))
        return first - 2.0 * second


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_what_keras_counts_up_finds_its_counterpart_in_order(before):
    inputs = keras.Input((2,))
    # As if other layers had been there before, or a session had been cleared since.
    for _ in range(before):
        layers.Dense(1).build((None, 2))
        Unnamed().build((None, 2))
    model = keras.Model(inputs, Unnamed(name="unnamed")(inputs))
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(size=variable.shape))
    keras.backend.clear_session()
    layers.Dense(1).build((None, 2))
    copy = rebuild(Graph.from_model(model), {model.get_layer("unnamed"): Unnamed(name="unnamed")})
    x = random.normal(size=(4, 2)).astype("float32")
    np.testing.assert_array_equal(copy(x), model(x))


def test_weights_of_inner_layers_find_each_other_by_path_and_shape():
    source = layers.Bidirectional(layers.LSTM(3), name="both")
    target = layers.Bidirectional(layers.LSTM(3), name="both")
    for layer in (source, target):
        layer.build((None, 4, 2))
    random = np.random.default_rng(0)
    for variable in source.variables:
        if "seed" not in variable.name:
            variable.assign(random.normal(size=variable.shape))
    copy_variables(source, target)
    for a, b in zip(source.weights, target.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_inside_a_layer_may_name_its_variables_by_itself():
    inner = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(4), keras.layers.Dense(4)],
        name="inner",
    )
    outer = keras.layers.TimeDistributed(inner)
    outer(keras.Input((5, 3)))
    copy = keras.layers.TimeDistributed.from_config(outer.get_config())
    copy(keras.Input((5, 3)))
    copy_variables(outer, copy)
    for one, other in zip(outer.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_variable_without_a_place_is_an_error_unless_skipped():
    source, target = layers.Dense(3, name="d"), layers.Dense(4, name="d")
    source.build((None, 2))
    target.build((None, 2))
    before = [w.copy() for w in target.get_weights()]
    with pytest.raises(ValueError, match=r"'kernel' of shape \(2, 3\) in the layer that replaces"):
        copy_variables(source, target)
    copy_variables(source, target, missing="skip")
    for a, b in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float16"])
def test_as_float32(policy):
    model = small(policy)
    copy = as_float32(model)
    assert copy is not model
    assert {layer.compute_dtype for layer in copy.layers} == {"float32"}
    for a, b in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(np.float32(a), b)
    assert as_float32(copy) is copy


def test_as_float32_keeps_what_a_quantized_model_knows():
    x = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype(np.float32)
    config = tfc.QuantizationConfig(by_name={"norm": None})
    quantized = tfc.quantize(small("mixed_bfloat16"), config, calibration_data=x)
    copy = as_float32(quantized)
    assert copy.plan is quantized.plan
    assert requested_floats(Graph.from_model(copy)) == ["norm"]
    assert copy.output_names == ["flat"]
    np.testing.assert_array_equal(copy.calibration_inputs[0], x)


def test_fresh_is_unbuilt_and_of_the_same_configuration():
    layer = small().get_layer("conv")
    copy = fresh(layer)
    assert not copy.built
    assert copy.get_config() == layer.get_config()


def test_copies_are_built_without_random_numbers_and_keep_their_initializers(monkeypatch):
    """Random numbers take three times a kernel's memory, and are overwritten."""
    inputs = keras.Input((4,))
    normal = keras.initializers.RandomNormal(seed=1)
    model = keras.Model(inputs, layers.Dense(3, kernel_initializer=normal, name="dense")(inputs))
    before = model.get_layer("dense").get_config()
    drawn = []
    monkeypatch.setattr(
        keras.initializers.RandomNormal, "__call__", lambda *a, **k: drawn.append(a)
    )
    copy = rebuild(Graph.from_model(model))
    assert not drawn
    assert copy.get_layer("dense").get_config() == before
    np.testing.assert_array_equal(copy.get_weights()[0], model.get_weights()[0])
