"""Removal is exact: zeroed activations in the model are what the smaller model lacks."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.pruning.structure.graphs import PATTERNS, build, unknown_layer
from tests.pruning.structure.oracle import (
    check,
    choose,
    outputs,
    randomize,
    relative_error,
    sample,
    zeroed,
)
from tfcompress.pruning.structure.dependencies import Dependencies
from tfcompress.pruning.structure.removal import remove


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(name):
    model = build(PATTERNS[name])
    randomize(model)
    dependencies = Dependencies(model)
    makers = [
        layer.name
        for layer in dependencies.graph.operations()
        if getattr(layer, "kernel", None) is not None
    ]
    grouped = {p.member.layer.name for g in dependencies.groups for p in g.places}
    # Everything but what gives the output takes part.
    assert set(makers) <= grouped | set(dependencies.kept)
    assert all("output" in why or "spread" in why for why in dependencies.kept.values())
    check(dependencies, choose(dependencies))


def test_application():
    model = keras.applications.MobileNetV3Small(
        (32, 32, 3), weights=None, classes=5, classifier_activation=None
    )
    randomize(model)
    dependencies = Dependencies(model)
    inputs = [128 + 60 * a for a in sample(model)]
    check(dependencies, choose(dependencies, 0.25), inputs)


def test_several_inputs_and_outputs():
    a, b = keras.Input((8, 8, 3), name="a"), keras.Input((8,), name="b")
    x = layers.Conv2D(6, 3, padding="same")(a)
    y = layers.Dense(6, "relu")(b)
    z = x + layers.Reshape((1, 1, 6))(y)
    outs = {"one": layers.Conv2D(4, 1, name="one")(z), "two": layers.Dense(2, name="two")(y)}
    model = keras.Model({"a": a, "b": b}, outs)
    randomize(model)
    dependencies = Dependencies(model)
    (group,) = dependencies.groups
    assert group.name == "conv2d + dense" or len(group.makers) == 2
    units = choose(dependencies)
    arrays = {"a": sample(model)[0], "b": sample(model)[1]}
    smaller = remove(dependencies, units)
    expected = zeroed(dependencies, units, [arrays["a"], arrays["b"]])
    received = smaller(arrays)
    assert sorted(received) == ["one", "two"]
    assert relative_error(expected, [np.asarray(received[k]) for k in ("one", "two")]) < 1e-5


def test_channels_first_and_causal():
    x = keras.Input((20, 5))
    y = layers.Conv1D(6, 3, padding="causal", dilation_rate=2)(x)
    y = layers.Conv1D(6, 3, padding="same")(layers.Permute((2, 1))(layers.Permute((2, 1))(y)))
    y = layers.DepthwiseConv1D(3)(layers.AveragePooling1D(2)(y))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalMaxPooling1D()(y)))
    randomize(model)
    check(Dependencies(model), choose(Dependencies(model)))


def test_three_dimensions():
    x = keras.Input((6, 6, 6, 2))
    y = layers.Conv3D(6, 3)(x)
    y = layers.Conv3DTranspose(5, 2)(layers.ReLU()(layers.BatchNormalization()(y)))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling3D()(y)))
    randomize(model)
    check(Dependencies(model), choose(Dependencies(model)))


def test_unknown_sizes():
    x = keras.Input((None, None, 3))
    y = layers.Conv2D(6, 3, padding="same")(x)
    y = layers.Reshape((-1, 6))(layers.Conv2D(6, 3, padding="same", activation="relu")(y))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(y)))
    randomize(model)
    check(Dependencies(model), choose(Dependencies(model)))


def check_all(model):
    randomize(model)
    dependencies = Dependencies(model)
    check(dependencies, choose(dependencies))
    return dependencies


@pytest.mark.parametrize("step", [2, -1])
def test_a_slice_with_a_step_keeps_what_it_cuts(step):
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, activation="relu")(x)
    y = layers.Conv2D(8, 1, name="cut")(y)[..., ::step]
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(y)))
    assert "sliced with a step" in check_all(model).kept["cut"]


def test_windows_that_join_the_batch():
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, padding="same", name="before")(x)
    y = layers.Conv2D(5, 3, padding="same")(ops.reshape(y, (-1, 4, 4, 6)))
    y = layers.Flatten()(ops.reshape(y, (-1, 8, 8, 5)))
    assert "before" not in check_all(keras.Model(x, layers.Dense(2)(y))).kept


def test_a_layer_that_is_called_on_two_ranks():
    sequence, vector = keras.Input((5, 4)), keras.Input((4,))
    shared = layers.Dense(6, name="shared")
    y = layers.GlobalAveragePooling1D()(layers.ReLU()(shared(sequence)))
    model = keras.Model([sequence, vector], layers.Dense(2)(y + shared(vector)))
    assert "shared" not in check_all(model).kept


def test_a_depthwise_activation_that_mixes_channels():
    x = keras.Input((8, 8, 3))
    y = layers.DepthwiseConv2D(3, activation="softmax")(layers.Conv2D(6, 1, name="conv")(x))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(y)))
    assert "softmax" in Dependencies(model).kept["conv"]


def test_recurrent_units_with_zeroed_weights():
    x = keras.Input((7, 4))
    y = layers.LSTM(6, return_sequences=True)(layers.Dense(5)(x))
    y = layers.GRU(6)(y)
    model = keras.Model(x, layers.Dense(2)(y))
    randomize(model)
    dependencies = Dependencies(model)
    # Gates are no widths.
    assert {g.name: (len(g), g.multiple) for g in dependencies.groups}["lstm"] == (6, 1)
    units = choose(dependencies)
    channels = dependencies.removed_channels(units)
    assert max(channels["lstm"]) < 6
    np.testing.assert_array_equal(dependencies.units_of(channels), np.unique(units))
    kept = dependencies.removed(units)
    smaller = remove(dependencies, units)
    # A unit whose weights are zero stays at its initial state of zero.
    for member in dependencies.tracer.members:
        if member.role.value == "makes" and member.labels is not None:
            shape = [1] * len(member.variable.shape)
            shape[member.axis] = -1
            member.variable.assign(member.variable * kept.of(member.labels).reshape(shape))
    inputs = sample(model)
    assert relative_error(outputs(model, inputs), outputs(smaller, inputs)) < 1e-5


def test_layer_norm_is_followed_and_named_as_inexact():
    x = keras.Input((8, 8, 3))
    y = layers.LayerNormalization()(layers.Conv2D(8, 3)(x))
    y = layers.GroupNormalization(2)(layers.Conv2D(8, 1)(y))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(y)))
    randomize(model)
    dependencies = Dependencies(model)
    first, second = dependencies.groups
    assert len(first) == 8
    assert "normalizes over the channels that are left" in first.inexact
    # Two groups of four: the n-th channels of both go together.
    assert len(second) == 4
    assert second.multiple == 2
    units = choose(dependencies)
    kept = dependencies.removed(units)
    smaller = remove(dependencies, units)
    # The reference: normalize what is left by hand.
    conv, norm = model.layers[1], model.layers[2]
    left = kept.of(dependencies.tracer.variable_labels(norm.gamma))
    features = np.asarray(conv(sample(model)[0]))[..., left]
    mean, deviation = features.mean(-1, keepdims=True), features.var(-1, keepdims=True)
    expected = (features - mean) / np.sqrt(deviation + norm.epsilon)
    expected = expected * np.asarray(norm.gamma)[left] + np.asarray(norm.beta)[left]
    middle = keras.Model(smaller.inputs[0], smaller.layers[2].output)
    assert relative_error([expected], outputs(middle, sample(model))) < 1e-5


def test_attention_layer_keeps_heads_and_follows_widths():
    x = keras.Input((9, 4))
    y = layers.Dense(8)(x)
    y = y + layers.MultiHeadAttention(2, 3)(y, y)
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(y)))
    randomize(model)
    dependencies = Dependencies(model)
    assert [len(g) for g in dependencies.groups] == [8]
    check(dependencies, choose(dependencies))


def test_a_call_that_a_rule_does_not_cover_is_named():
    x = keras.Input((7, 4))
    _, *state = layers.LSTM(6, return_state=True, name="encoder")(x)
    model = keras.Model(x, layers.Dense(2)(state[0]))
    assert "does not cover this call" in Dependencies(model).kept["encoder"]


def test_what_cannot_be_followed_is_kept_and_named():
    model = build(unknown_layer)
    randomize(model)
    dependencies = Dependencies(model)
    assert "cannot be followed through 'mystery' (Lambda)" in dependencies.kept["before"]
    assert "mystery" in str(dependencies)
    check(dependencies, choose(dependencies))


def test_a_subclass_of_a_known_layer_is_not_trusted():
    class Reversed(layers.Conv2D):
        def call(self, inputs):
            return super().call(inputs)[..., ::-1]

    x = keras.Input((8, 8, 3))
    y = Reversed(6, 3, name="reversed")(layers.Conv2D(5, 3, name="first")(x))
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(y)))
    dependencies = Dependencies(model)
    assert not dependencies.groups
    assert "reversed" in dependencies.kept
    assert "'reversed' (Reversed)" in dependencies.kept["first"]


def test_a_group_explains_every_consequence():
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, name="conv")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Flatten(name="flatten")(layers.ReLU(name="relu")(y))
    model = keras.Model(x, layers.Dense(2, name="logits")(y))
    (group,) = Dependencies(model).groups
    text = str(group)
    for expected in ("6 channels of conv", "kernel[:, :, :, j]", "gamma[j]", "36 indices"):
        assert expected in text
    assert "passes: relu, flatten" in text
    assert ops.size(group.places[-1].indices) == 6 * 36
