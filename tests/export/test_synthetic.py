"""Synthetic inputs lie in the ranges that the model gives; without a range there are none."""

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from tfcompress.export.synthetic import synthetic_inputs


def test_floats_are_on_the_grid_of_the_input_quantizer():
    inputs = keras.Input((40,), name="x")
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    data = np.linspace(-1, 3, 80, dtype=np.float32).reshape(2, 40)
    quantized = tfc.quantize(model, calibration_data=data)
    (x,) = synthetic_inputs(quantized, 50)
    assert (x.shape, x.dtype) == ((50, 40), np.float32)
    quantizer = quantized.get_layer("x_quantizer")
    low, high = quantizer.range
    np.testing.assert_allclose([x.min(), x.max()], [low, high], atol=1e-6)
    codes = (x - low) / float(quantizer.scale.numpy())
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    np.testing.assert_array_equal(x, synthetic_inputs(quantized, 50)[0])
    assert not np.array_equal(x, synthetic_inputs(quantized, 50, seed=1)[0])


def test_tokens_come_from_the_embedding_that_reads_them():
    inputs = keras.Input((6,), dtype="int32", name="tokens")
    model = keras.Model(inputs, layers.Embedding(9, 4)(inputs))
    (tokens,) = synthetic_inputs(model, 100)
    assert (tokens.shape, tokens.dtype) == ((100, 6), np.int32)
    assert set(np.unique(tokens)) == set(range(9))


def test_nothing_is_drawn_without_a_known_range():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    assert synthetic_inputs(model, 3) is None
    assert synthetic_inputs(tfc.quantize(model), 3) is None
    open_shape = keras.Input((None,), dtype="int32")
    tokens = keras.Model(open_shape, layers.Embedding(9, 4)(open_shape))
    assert synthetic_inputs(tokens, 3) is None
    plain = keras.Input((4,), dtype="int32")
    assert synthetic_inputs(keras.Model(plain, keras.ops.add(plain, 1)), 3) is None
