"""What `shrink` makes of layers with ways of their own: quantized, clustered, registered."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from recipes import models
from tests.pruning.structure.oracle import outputs, relative_error, zeroed
from tfcompress.pruning.structure import Dependencies, shrink
from tfcompress.pruning.structure.removal import remove
from tfcompress.pruning.structure.rules import registry as rules
from tfcompress.pruning.structure.rules.registry import register_rule
from tfcompress.pruning.structure.tracer import Role


def test_a_quantized_model_is_shrunk_trained_saved_and_exported(tmp_path):
    keras.utils.set_random_seed(0)
    float_model = models.build("digits_cnn", (8, 8, 1), 10)
    images = np.random.default_rng(0).uniform(0, 1, (64, 8, 8, 1)).astype("float32")
    quantized = tfc.quantize(float_model, calibration_data=images)
    smaller = shrink(quantized, target_macs=0.5, round_to=2)
    assert tfc.count_macs(smaller) / tfc.count_macs(quantized) == pytest.approx(0.5, abs=0.02)
    # Still quantized, layer by layer.
    full = {layer.name: layer for layer in quantized.layers}
    for layer in smaller.layers:
        assert type(layer) is type(full[layer.name])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    smaller.compile("sgd", loss)
    smaller.fit(images, np.arange(64) % 10, batch_size=32, verbose=0)
    smaller.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(again(images), smaller(images))
    report = tfc.export_tflite(again, tmp_path / "small.tflite", verify_data=images)
    assert not report.float_tensors
    assert report.agreement == 1.0


def test_attention_called_by_names_and_masks_of_embeddings():
    words = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 16, mask_zero=True, name="table")(words)
    x = layers.LSTM(16, return_sequences=True, name="memory")(x)
    attention = layers.MultiHeadAttention(2, 8, name="attention")
    y = attention(query=x, value=x, key=x)
    model = keras.Model(words, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))
    dependencies = Dependencies(model)
    assert {g.name for g in dependencies.groups} == {"table", "memory", "attention"}
    assert "heads" in dependencies.kept["attention"]
    smaller = shrink(model, target_parameters=0.6, round_to=1)
    assert smaller.get_layer("memory").units < 16
    ids = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 9]])
    again = remove(dependencies, dependencies.units_of(smaller.shrink_report.removed))
    np.testing.assert_array_equal(smaller(ids), again(ids))
    assert np.isfinite(smaller(ids)).all()


def test_macs_of_mixed_positions_are_those_of_the_result():
    inputs = keras.Input((16, 12))
    x = layers.Dense(24, "relu", name="features")(inputs)
    x = layers.Dense(32, "relu", name="tokens")(layers.Permute((2, 1))(x))
    x = layers.GlobalAveragePooling1D()(layers.Permute((2, 1))(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    smaller = shrink(model, target_macs=0.7, round_to=1)
    left = tfc.count_macs(smaller) / tfc.count_macs(model)
    # By the sizes of the kernels alone, which run fewer times too, the search would end below 0.6.
    assert left == pytest.approx(0.7, abs=0.02)
    assert smaller.shrink_report.fractions["macs"] == pytest.approx(left)


@pytest.mark.parametrize("scope", ["layer", "channel"])
def test_codebooks_stay_and_follow_their_channels(scope):
    inputs = keras.Input((16,))
    x = layers.Dense(16, "relu", name="square")(inputs)
    model = keras.Model(inputs, layers.Dense(5, name="logits")(layers.Dense(16, name="b")(x)))
    clustered = tfc.cluster(model, 16 if scope == "layer" else 4, scope=scope)
    smaller = shrink(clustered, target_parameters=0.6, round_to=1)
    randomly = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    dependencies = Dependencies(clustered)
    units = dependencies.units_of(smaller.shrink_report.removed)
    expected = zeroed(dependencies, units, [randomly])
    assert relative_error(expected, outputs(smaller, [randomly])) < 1e-5


@keras.saving.register_keras_serializable("tests.structure")
class Mix(keras.layers.Layer):
    """A dense layer of the user's own."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], self.width), name="w")

    def call(self, x):
        return keras.ops.matmul(x, self.w)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_layers_that_a_user_registered(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))

    @register_rule(Mix)
    def mix(t, node):
        layer, x = node.operation, t.of(node.inputs[0])
        out = t.made(layer, layer.width)
        t.member(layer, "w", 0, x[-1], Role.INPUT)
        t.member(layer, "w", 1, out, Role.OUTPUT)
        t.resize(layer, lambda kept: {"width": kept.count(out)})
        return (*x[:-1], out)

    inputs = keras.Input((6,))
    x = layers.Dense(16, "relu", name="first")(inputs)
    x = layers.Dense(16, "relu", name="last")(Mix(16, name="mix")(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    smaller = shrink(model, target_parameters=0.6, round_to=1)
    # Magnitude has no score for a weight that is in no table of kernels: it stays as wide.
    assert smaller.get_layer("mix").width == 16
    assert smaller.get_layer("first").units + smaller.get_layer("last").units < 32


@pytest.mark.parametrize("renorm", [False, True])
def test_layers_that_start_from_arrays_or_renormalize(renorm):
    start = keras.initializers.Constant(np.random.default_rng(0).normal(size=(20, 8)).tolist())
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8, embeddings_initializer=start, name="table")(inputs)
    x = layers.BatchNormalization(renorm=renorm)(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
    smaller = shrink(model, target_parameters=0.6, round_to=1)
    width = smaller.get_layer("table").output_dim
    assert width < 8
    assert {v.shape[0] for v in smaller.layers[2].variables} == {width}
    assert np.all(np.isfinite(smaller(np.arange(14).reshape(2, 7))))
