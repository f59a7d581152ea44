"""MACs counted by hand for every kind of layer."""

import keras
import numpy as np
import pytest
from keras import layers as L

from tfcompress.model.macs import count_macs, uncounted_layers

CASES = {
    # layer: (input shape without batch, MACs)
    "dense": (lambda: L.Dense(5), (7,), 7 * 5),
    "dense on a sequence": (lambda: L.Dense(5), (3, 7), 3 * 7 * 5),
    "conv1d": (lambda: L.Conv1D(4, 3), (10, 2), 8 * 3 * 2 * 4),
    "conv1d causal": (lambda: L.Conv1D(4, 3, padding="causal"), (10, 2), 10 * 3 * 2 * 4),
    "conv2d": (lambda: L.Conv2D(4, (3, 5)), (8, 9, 2), 6 * 5 * 15 * 2 * 4),
    "conv2d same, strided": (
        lambda: L.Conv2D(4, 3, strides=2, padding="same"),
        (9, 9, 2),
        5 * 5 * 9 * 2 * 4,
    ),
    "conv2d dilated": (lambda: L.Conv2D(4, 3, dilation_rate=2), (8, 8, 2), 4 * 4 * 9 * 2 * 4),
    "conv2d grouped": (lambda: L.Conv2D(6, 3, groups=2), (8, 8, 4), 6 * 6 * 9 * (4 // 2) * 6),
    "conv3d": (lambda: L.Conv3D(3, 2), (4, 4, 4, 2), 27 * 8 * 2 * 3),
    "conv1d transpose": (lambda: L.Conv1DTranspose(4, 3, strides=2), (5, 2), 5 * 3 * 4 * 2),
    "conv2d transpose": (
        lambda: L.Conv2DTranspose(4, 3, strides=2, padding="same"),
        (5, 6, 2),
        5 * 6 * 9 * 4 * 2,
    ),
    "conv3d transpose": (lambda: L.Conv3DTranspose(2, 2), (3, 3, 3, 2), 27 * 8 * 2 * 2),
    "depthwise 1d": (lambda: L.DepthwiseConv1D(3), (10, 4), 8 * 3 * 4),
    "depthwise 2d": (
        lambda: L.DepthwiseConv2D(3, depth_multiplier=2),
        (8, 8, 4),
        6 * 6 * 9 * 4 * 2,
    ),
    "separable 1d": (lambda: L.SeparableConv1D(5, 3), (10, 4), 8 * (3 * 4 + 4 * 5)),
    "separable 2d": (
        lambda: L.SeparableConv2D(5, 3, strides=2, depth_multiplier=2),
        (9, 9, 4),
        4 * 4 * (9 * 4 * 2 + 8 * 5),
    ),
    "einsum": (lambda: L.EinsumDense("abc,cde->abde", (3, 4, 5)), (3, 6), 3 * 6 * 4 * 5),
    "einsum with ellipsis": (
        lambda: L.EinsumDense("...x,xy->...y", 5),
        (2, 3, 6),
        2 * 3 * 6 * 5,
    ),
    "lstm": (lambda: L.LSTM(5), (6, 3), 6 * (3 * 20 + 5 * 20)),
    "gru": (lambda: L.GRU(5), (6, 3), 6 * (3 * 15 + 5 * 15)),
    "simple rnn": (lambda: L.SimpleRNN(5), (6, 3), 6 * (3 * 5 + 5 * 5)),
    "bidirectional": (lambda: L.Bidirectional(L.GRU(5)), (6, 3), 2 * 6 * (3 * 15 + 5 * 15)),
    "rnn of a cell": (lambda: L.RNN(L.LSTMCell(5)), (6, 3), 6 * (3 * 20 + 5 * 20)),
    "rnn of two cells": (
        lambda: L.RNN([L.GRUCell(5), L.SimpleRNNCell(4)]),
        (6, 3),
        6 * (3 * 15 + 5 * 15 + 5 * 4 + 4 * 4),
    ),
    "conv lstm": (
        lambda: L.ConvLSTM2D(4, 3, return_sequences=True),
        (5, 8, 8, 2),
        5 * 36 * (9 * 2 * 16 + 9 * 4 * 16),
    ),
    "conv lstm, last": (
        lambda: L.ConvLSTM1D(4, 3, padding="same", return_state=False),
        (5, 8, 2),
        5 * 8 * (3 * 2 * 16 + 3 * 4 * 16),
    ),
    "time distributed": (lambda: L.TimeDistributed(L.Conv1D(4, 3)), (5, 8, 2), 5 * 6 * 3 * 2 * 4),
    "spectral normalization": (lambda: L.SpectralNormalization(L.Dense(5)), (7,), 35),
    "prelu": (lambda: L.PReLU(), (4, 4, 3), 0),
    "no kernel": (lambda: L.BatchNormalization(), (6, 3), 0),
    "pooling": (lambda: L.MaxPooling2D(), (6, 6, 3), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_by_hand(case):
    make, shape, expected = CASES[case]
    inputs = keras.Input(shape)
    assert count_macs(keras.Model(inputs, make()(inputs))) == expected


def test_embedding_is_a_lookup():
    inputs = keras.Input((7,), dtype="int32")
    assert count_macs(keras.Model(inputs, L.Embedding(100, 8)(inputs))) == 0


@pytest.mark.parametrize("value_dim", [None, 3])
def test_multi_head_attention(value_dim):
    query, value = keras.Input((5, 8)), keras.Input((6, 8))
    attention = L.MultiHeadAttention(num_heads=2, key_dim=4, value_dim=value_dim)
    model = keras.Model([query, value], attention(query, value))
    v = value_dim or 4
    projections = 5 * 8 * 2 * 4 + 6 * 8 * 2 * 4 + 6 * 8 * 2 * v + 5 * 2 * v * 8
    assert count_macs(model) == projections + 5 * 6 * 2 * (4 + v)


def test_attention_called_by_names():
    query, value = keras.Input((5, 8)), keras.Input((6, 8))
    mask = keras.Input((5, 6), dtype="bool")
    attention = L.MultiHeadAttention(num_heads=2, key_dim=4)
    outputs = attention(attention_mask=mask, value=value, query=query)
    model = keras.Model([query, value, mask], outputs)
    assert count_macs(model) == (5 + 6 + 6 + 5) * 8 * 8 + 5 * 6 * 2 * (4 + 4)


@pytest.mark.parametrize("cls", [L.Attention, L.AdditiveAttention])
def test_attention_without_projections(cls):
    query, value, key = keras.Input((5, 8)), keras.Input((6, 7)), keras.Input((6, 8))
    model = keras.Model([query, value, key], cls()([query, value, key]))
    assert count_macs(model) == 5 * 6 * (8 + 7)
    same = keras.Input((6, 8))
    assert count_macs(keras.Model([query, same], cls()([query, same]))) == 5 * 6 * (8 + 8)


def test_dot():
    a, b = keras.Input((5, 8)), keras.Input((6, 8))
    assert count_macs(keras.Model([a, b], L.Dot(axes=2)([a, b]))) == 5 * 6 * 8
    assert count_macs(keras.Model([a, b], L.Dot(axes=(-1, -1))([a, b]))) == 5 * 6 * 8


def test_channels_first_by_hand():
    convolution = L.Conv2D(4, 3, data_format="channels_first", name="conv")
    convolution.build((None, 2, 8, 9))
    # No CPU runs it, so the model is not made: the counter alone.
    from tfcompress.model.macs import _counter

    assert _counter(convolution)(convolution, [(1, 2, 8, 9)], (1, 4, 6, 7)) == 6 * 7 * 9 * 2 * 4


class Projection(keras.layers.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 3), name="w")

    def call(self, x):
        return keras.ops.matmul(x, self.w)


def test_layers_that_are_not_counted_are_named():
    inputs = keras.Input((4, 4, 2))
    x = L.PReLU()(L.BatchNormalization()(L.Conv2D(3, 3, name="conv")(inputs)))
    x = L.LayerNormalization(axis=(1, 2, 3))(x)
    x = L.SpectralNormalization(L.Dense(4, name="dense"))(L.Flatten()(x))
    model = keras.Model(inputs, Projection(name="own")(x))
    assert uncounted_layers(model) == ["own"]
    assert count_macs(model) == 2 * 2 * 9 * 2 * 3 + 12 * 4
    assert uncounted_layers(keras.Model(inputs, x)) == []


def test_grouped_query_attention():
    x = keras.Input((5, 8))
    attention = L.GroupQueryAttention(head_dim=4, num_query_heads=4, num_key_value_heads=2)
    projections = 5 * 8 * 4 * 4 + 2 * 5 * 8 * 2 * 4 + 5 * 4 * 4 * 8
    assert count_macs(keras.Model(x, attention(x, x))) == projections + 5 * 5 * 4 * (4 + 4)


def test_shared_layers_count_at_every_call_and_nested_ones_once():
    shared = L.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4, name="inner")], name="nested")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(2, name="last")(inner(shared(shared(inputs)))))
    by_layer = count_macs(model, by_layer=True)
    assert by_layer == {"shared": 32, "inner": 16, "last": 8}
    assert count_macs(model) == 56


def test_layers_of_the_same_name_are_told_apart():
    def branch(name):
        inner = keras.Input((4,))
        return keras.Model(inner, L.Dense(2, name="dense")(inner), name=name)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Add()([branch("a")(inputs), branch("b")(inputs)]))
    assert count_macs(model, by_layer=True) == {"a/dense": 8, "b/dense": 8}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, x):
        return self.dense(x["a"])


def test_subclassed_model():
    model = Subclassed()
    example = {"a": np.zeros((9, 4), np.float32)}
    model(example)
    assert count_macs(model, inputs=example) == 12
    with pytest.raises(ValueError, match="Expected `inputs=`"):
        count_macs(model)


def test_an_unknown_length_is_an_error():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, L.LSTM(5)(inputs))
    with pytest.raises(ValueError, match="not known"):
        count_macs(model)
    assert count_macs(model, inputs=np.zeros((1, 6, 3), np.float32)) == 6 * (3 * 20 + 5 * 20)


def test_counting_leaves_no_trace_in_the_model():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.BatchNormalization()(L.Dense(2)(inputs)))
    before = [v.numpy() for v in model.variables]
    count_macs(model)
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    assert all("call" not in vars(layer) for layer in model.layers)
