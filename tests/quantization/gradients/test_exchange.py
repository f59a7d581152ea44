"""Codes that workers send each other: packed, summed and counted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.gradients.exchange import message, message_words, sum_over_replicas
from tfcompress.quantization.gradients.packing import pack, unpack, words
from tfcompress.quantization.gradients.rounding import Grid


@settings(max_examples=40, deadline=None)
@given(num_bits=st.integers(1, 16), count=st.integers(1, 70), seed=st.integers(0, 99))
def test_codes_come_back_from_their_words(num_bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**num_bits, count).astype(np.int32)
    packed = pack(tf.constant(codes), num_bits)
    assert packed.dtype == tf.int32
    assert packed.shape == (words(count, num_bits),)
    np.testing.assert_array_equal(unpack(packed, count, num_bits), codes)
    # By arithmetic on whole numbers of any size.
    each = 32 // num_bits
    first = sum(int(code) << (num_bits * i) for i, code in enumerate(codes[:each]))
    assert int(packed[0]) % 2**32 == first


def test_a_code_out_of_range_leaves_the_others_alone():
    packed = pack(tf.constant([1, -(2**31), 1], tf.int32), 8)
    np.testing.assert_array_equal(unpack(packed, 3, 8), [1, 0, 1])


SHAPES = ((3, 5), (7,), (2, 2, 4))


def replicas(num_bits, method, count=3):
    """Codes and scales of each replica, and what they stand for."""
    grid = Grid(method, num_bits)
    found = []
    for i in range(count):
        random = np.random.default_rng(i)
        gradients = [tf.constant(random.normal(0, 10.0**i, s), tf.float32) for s in SHAPES]
        axes = [[0], None, [0, 1]]
        sizes = [grid.size(g, a) for g, a in zip(gradients, axes, strict=True)]
        codes = [grid.encode(g, s, None) for g, s in zip(gradients, sizes, strict=True)]
        found.append(
            (codes, sizes, [grid.decode(*each) for each in zip(codes, sizes, strict=True)])
        )
    return grid, found


@pytest.mark.parametrize(("num_bits", "method"), [(8, "uniform"), (3, "qsgd"), (16, "dorefa")])
def test_the_sum_is_that_of_what_all_codes_stand_for(num_bits, method):
    grid, found = replicas(num_bits, method)
    rows = tf.stack([message(codes, sizes, num_bits) for codes, sizes, _ in found])
    assert rows.shape[1] == message_words(SHAPES, 5 + 1 + 4, num_bits)
    codes, sizes, _ = found[1]
    sums, is_finite = sum_over_replicas(codes, sizes, grid, lambda row: rows)
    assert is_finite
    for i, total in enumerate(sums):
        expected = np.sum([values[i].numpy() for *_, values in found], axis=0)
        np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_a_gradient_that_is_not_finite_on_one_replica_is_so_on_all():
    grid, found = replicas(8, "uniform", 2)
    codes, sizes, _ = found[1]
    broken = [codes[0] * np.nan, *codes[1:]], [sizes[0] * np.nan, *sizes[1:]]
    rows = tf.stack([message(*found[0][:2], 8), message(*broken, 8)])
    sums, is_finite = sum_over_replicas(*found[0][:2], grid, lambda row: rows)
    assert not is_finite
    assert np.isnan(sums[0]).all()
    assert all(np.isfinite(total).all() for total in sums[1:])


def test_bytes_are_counted():
    model = keras.Sequential([keras.Input((30,)), layers.Dense(10), layers.Dense(4)])
    model.compile(tfc.QuantizedGradients(keras.optimizers.Adam(), 8), "mse")
    parameters, message_bytes = 300 + 10 + 40 + 4, 4 * (4 + 89)
    traffic = tfc.distribute.gradient_traffic(model)
    assert (traffic.workers, traffic.parameters) == (2, parameters)
    assert traffic.message_bytes == message_bytes
    assert traffic.float_bytes == 4 * parameters
    assert traffic.code_bytes == message_bytes
    assert traffic.ratio == pytest.approx(4 * parameters / message_bytes)
    assert not traffic.sends_codes
    assert "sends no codes" in str(traffic)
    # From that number of workers on it loses, and not from the one before.
    for workers, is_less in ((traffic.loses_from - 1, True), (traffic.loses_from, False)):
        there = tfc.distribute.gradient_traffic(model, workers=workers)
        assert (there.code_bytes < there.float_bytes) is is_less
    assert traffic.loses_from == 8
    assert traffic.to_dict()["loses_from"] == 8


def test_arguments_of_the_count_are_checked():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    with pytest.raises(TypeError, match="QuantizedGradients"):
        tfc.distribute.gradient_traffic(model)
    quantized = tfc.QuantizedGradients(keras.optimizers.SGD())
    model.compile(keras.optimizers.LossScaleOptimizer(quantized), "mse")
    assert tfc.distribute.gradient_traffic(model, 3).workers == 3
    with pytest.raises(ValueError, match="from 2 on"):
        tfc.distribute.gradient_traffic(model, workers=1)
    unbuilt = keras.Sequential([layers.Dense(1)])
    unbuilt.compile(tfc.QuantizedGradients(keras.optimizers.SGD()), "mse")
    with pytest.raises(ValueError, match="built"):
        tfc.distribute.gradient_traffic(unbuilt)
