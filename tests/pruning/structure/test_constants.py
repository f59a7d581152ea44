"""Channels that emit a constant, and what takes it over."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.pruning.structure.oracle import outputs, plain, randomize, relative_error, sample
from tfcompress.pruning.structure import shrink


def silence(model, channels, beta):
    """What training with a penalty on γ leaves: channels that emit a constant."""
    norm = model.get_layer("norm")
    gamma, shift = np.array(norm.gamma), np.array(norm.beta)
    gamma[channels], shift[channels] = 0.0, beta
    norm.gamma.assign(gamma)
    norm.beta.assign(shift)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_constants_move_into_the_next_bias(use_bias, activation):
    model = plain(use_bias=use_bias, activation=activation)
    silence(model, [1, 4, 5], [0.7, -0.3, 1.5])
    smaller = shrink(model)
    assert smaller.get_layer("first").filters == 5
    assert relative_error(outputs(model, sample(model)), outputs(smaller, sample(model))) < 1e-5
    assert "moved into second" in smaller.shrink_report.notes[-1]


def test_a_batch_norm_takes_a_constant_where_there_is_no_bias():
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, name="first")(image))
    x = layers.Conv2D(6, 3, use_bias=False)(x)
    x = layers.BatchNormalization(name="after")(x)
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))
    randomize(model)
    silence(model, [0, 2], [1.0, -1.0])
    smaller = shrink(model)
    assert smaller.count_params() == model.count_params() - 2 * (27 + 1 + 4 + 9 * 6)
    assert relative_error(outputs(model, sample(model)), outputs(smaller, sample(model))) < 1e-5


def test_same_padding_refuses_a_constant_and_says_so():
    model = plain(padding="same")
    silence(model, [1, 4], [0.7, -0.3])
    # ReLU of -0.3 is zero, which no border changes.
    smaller = shrink(model)
    assert smaller.get_layer("first").filters == 7
    (note,) = [n for n in smaller.shrink_report.notes if "stay" in n]
    assert "'second' reads with padding 'same'" in note
    assert relative_error(outputs(model, sample(model)), outputs(smaller, sample(model))) < 1e-5
    silence(model, [1, 4], [0.7, 0.3])
    with pytest.raises(ValueError, match=r"Nothing to remove.*missing at the border"):
        shrink(model)


def test_dead_is_not_taken_for_what_is_only_quiet():
    model = plain(norm=False)
    kernel, bias = (
        np.array(model.get_layer("first").kernel),
        np.array(model.get_layer("first").bias),
    )
    kernel[..., 2], bias[2] = 0.0, 0.4
    kernel[..., 3], bias[3] = 1e-3 * kernel[..., 3], -5.0
    model.get_layer("first").kernel.assign(kernel)
    model.get_layer("first").bias.assign(bias)
    assert shrink(model).get_layer("first").filters == 7


def test_a_layer_is_never_emptied():
    model = plain()
    silence(model, list(range(8)), -1.0)
    smaller = shrink(model)
    assert smaller.get_layer("first").filters == 1
    assert relative_error(outputs(model, sample(model)), outputs(smaller, sample(model))) < 1e-5


def test_rows_of_a_table_that_agree_make_no_constant():
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(20, 8, name="table")(inputs)
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    table = model.get_layer("table").embeddings
    value = np.random.default_rng(0).normal(size=(20, 8))
    value[:2] = 0  # Padding and unknown words.
    table.assign(value)
    with pytest.raises(ValueError, match="Nothing to remove"):
        shrink(model, round_to=1)
    value[:, [2, 5]] = [0.0, 0.7]
    table.assign(value)
    smaller = shrink(model, round_to=1)
    assert smaller.get_layer("table").output_dim == 6
    words = np.arange(14).reshape(2, 7)
    np.testing.assert_allclose(model(words), smaller(words), rtol=1e-5, atol=1e-6)


def dead_filter(layer, index=0):
    kernel, bias = np.array(layer.kernel), np.array(layer.bias)
    kernel[..., index], bias[index] = 0.0, 0.0
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)


@pytest.mark.parametrize("seed", range(6))
def test_activations_inside_a_kernel_layer_hide_nothing(seed):
    """On a few examples any unit may be silent: only its weights tell that it always is."""
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(16, 1, activation="relu", name="map")(inputs)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(64, 1, activation="relu", name="squeeze")(gate)
    x = x * layers.Conv2D(16, 1, activation="sigmoid")(gate)
    x = layers.Dense(64, "relu", name="hidden")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    randomize(model, seed)
    for name in ("map", "squeeze", "hidden"):
        dead_filter(model.get_layer(name))
    smaller = shrink(model)
    assert smaller.get_layer("map").filters == 15
    assert smaller.get_layer("squeeze").filters == 63
    assert smaller.get_layer("hidden").units == 63
    inputs = sample(model, 64)
    assert relative_error(outputs(model, inputs), outputs(smaller, inputs)) < 1e-5


def test_a_filter_that_only_large_inputs_wake_stays():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    randomize(model)
    conv = model.get_layer("conv")
    dead_filter(conv)
    kernel, bias = np.array(conv.kernel), np.array(conv.bias)
    kernel[..., 1] = 0.02 * np.array([[1, 0, -1]] * 3)[..., None]
    bias[1] = -6.0
    conv.kernel.assign(kernel)
    conv.bias.assign(bias)
    assert shrink(model).get_layer("conv").filters == 7


def test_a_constant_through_two_kernels():
    """Zeros, then what a second kernel makes of them alone: its bias."""
    model = plain(norm=False, activation="relu")
    first, second = model.get_layer("first"), model.get_layer("second")
    first.kernel.assign(first.kernel * np.array([1, 1, 1, 0, 0, 0, 0, 0]))
    first.bias.assign([0.1, 0.2, 0.3, 0.5, 0.4, -0.3, 0.0, 0.2])
    kernel = np.array(second.kernel)
    kernel[:, :, :3, 2] = 0.0
    second.kernel.assign(kernel)
    smaller = shrink(model)
    assert smaller.get_layer("first").filters == 3
    assert smaller.get_layer("second").filters == 5
    inputs = sample(model)
    assert relative_error(outputs(model, inputs), outputs(smaller, inputs)) < 1e-5


def test_a_fixed_number_of_examples():
    inputs = keras.Input(batch_shape=(1, 8, 8, 3))
    x = layers.Conv2D(16, 3, padding="same", name="conv")(inputs)
    x = layers.ReLU()(ops.reshape(x, (1, 64, 16)))
    model = keras.Model(inputs, layers.Dense(3)(x))
    randomize(model)
    dead_filter(model.get_layer("conv"))
    smaller = shrink(model)
    assert smaller.get_layer("conv").filters == 15
    inputs = sample(model, 1)
    assert relative_error(outputs(model, inputs), outputs(smaller, inputs)) < 1e-5


def test_examples_that_are_taken_apart_are_left_alone_and_named():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 3, padding="same", name="conv")(inputs)
    x = layers.Conv2D(16, 3, padding="same", name="window")(ops.reshape(x, (-1, 4, 4, 16)))
    x = ops.reshape(x, (-1, 12, 12, 16))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    randomize(model)
    dead_filter(model.get_layer("window"), 3)
    with pytest.raises(ValueError, match="constant behind reshape"):
        shrink(model)


def test_strings_among_the_inputs():
    words = keras.Input((1,), dtype="string")
    lookup = layers.StringLookup()
    lookup.adapt(np.array([["a"], ["b"], ["b"]]))
    x = layers.Flatten()(layers.Embedding(4, 8)(lookup(words)))
    x = layers.Dense(16, name="hidden")(x)
    model = keras.Model(words, layers.Dense(3)(x))
    randomize(model)
    dead_filter(model.get_layer("hidden"))
    smaller = shrink(model)
    assert smaller.get_layer("hidden").units == 15
    text = np.array([["a"], ["b"], ["c"]])
    np.testing.assert_allclose(model(text), smaller(text), rtol=1e-5, atol=1e-6)
    # What the lookup has learned is not in its configuration, and is there all the same.
    assert not np.allclose(smaller(text)[0], smaller(text)[1])


def test_an_adapted_normalization_keeps_its_statistics():
    norm = layers.Normalization()
    data = np.random.default_rng(0).normal(50, 10, (200, 6)).astype(np.float32)
    norm.adapt(data)
    inputs = keras.Input((6,))
    x = layers.Dense(16, "relu", name="hidden")(norm(inputs))
    model = keras.Model(inputs, layers.Dense(3)(x))
    dead_filter(model.get_layer("hidden"), 3)
    smaller = shrink(model)
    np.testing.assert_allclose(model(data), smaller(data), rtol=1e-5, atol=1e-5)
