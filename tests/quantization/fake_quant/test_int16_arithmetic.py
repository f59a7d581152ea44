"""The integers of LiteRT's kernels of 16-bit activations, beside their formulas in Python."""

import math

import numpy as np
import tensorflow as tf

from tfcompress.quantization.fake_quant import int16_arithmetic as arithmetic

RNG = np.random.default_rng(0)
RATIOS = [*np.exp(RNG.uniform(np.log(1e-9), np.log(0.9), 40)), 2.0**-12, 2.0**-12 * (1 - 2.0**-40)]


def fixed_point(ratio):
    fraction, exponent = math.frexp(ratio)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    return (multiplier // 2, exponent + 1) if multiplier == 2**31 else (multiplier, exponent)


def scaled(x, multiplier, exponent):
    """Rounding by 2³¹, halves up, then by the rest, halves away from zero."""
    high = (x * multiplier + 2**30) >> 31
    right = -exponent
    size = (abs(high) + (1 << right >> 1)) >> right
    return size if high >= 0 else -size


def scaled_once(x, multiplier, exponent):
    return (x * multiplier + (1 << (30 - exponent))) >> (31 - exponent)


def totals(ratio):
    """Sums whose codes have up to 16 bits, those near halves among them."""
    found = np.rint(RNG.uniform(-33000, 33000, 50) / ratio)
    halves = np.rint((np.arange(-5, 5) + 0.5) / ratio)
    return np.clip(np.concatenate([found, halves]), -(2.0**46), 2.0**46)


def test_sums_of_convolutions_and_dense_layers():
    for ratio in RATIOS:
        total = totals(ratio)
        multiplier, exponent = fixed_point(ratio)
        short = min((multiplier + 2**15) >> 16, 2**15 - 1)
        wanted = [(int(t) * short + (1 << (14 - exponent))) >> (15 - exponent) for t in total]
        given = tf.constant(total, tf.float64), tf.constant(ratio, tf.float64)
        assert arithmetic.convolution_codes(*given).numpy().tolist() == wanted
        nearest = np.sign(total) * np.floor(np.abs(total * ratio) + 0.5)
        assert arithmetic.dense_codes(*given).numpy().tolist() == nearest.tolist()


def test_a_ratio_per_channel():
    ratios = np.array(RATIOS[:4])
    total = np.rint(RNG.uniform(-3e4, 3e4, (5, 4)) / ratios)
    found = arithmetic.convolution_codes(tf.constant(total), tf.constant(ratios)).numpy()
    for i, ratio in enumerate(ratios):
        alone = arithmetic.convolution_codes(tf.constant(total[:, i]), tf.constant(ratio))
        assert found[:, i].tolist() == alone.numpy().tolist()


def test_means():
    for ratio, count in [(0.7, 49), (1.3, 64), (2.0, 7), (1.0, 16)]:
        total = np.rint(RNG.uniform(-(2**15), 2**15, 60) * count)
        multiplier, exponent = fixed_point(ratio)
        shift = count.bit_length() - 1
        wanted = [scaled(int(t), (multiplier << shift) // count, exponent - shift) for t in total]
        found = arithmetic.mean_codes(
            tf.constant(total), tf.constant(count), tf.constant(ratio, tf.float64)
        )
        assert found.numpy().tolist() == wanted


def test_sums_of_two_tensors():
    first, second = RNG.integers(-(2**15), 2**15, (2, 200))
    scales = np.float32([3e-4, 7e-5])
    for output in np.float32([4e-4, 3e-4, 1.3e-3]):
        unit = 2 * float(scales.max())
        exact = [fixed_point(float(scale) / unit) for scale in scales]
        last = fixed_point(unit / (2**15 * float(output)))
        wanted = [
            scaled(scaled_once(a << 15, *exact[0]) + scaled_once(b << 15, *exact[1]), *last)
            for a, b in zip(first.tolist(), second.tolist(), strict=True)
        ]
        found = arithmetic.sum_codes(
            [tf.constant(v, tf.float32) for v in (first, second)],
            [tf.constant(s) for s in scales],
            tf.constant(output),
        )
        assert found.numpy().tolist() == wanted


def test_an_operand_of_a_sum_is_rounded_once():
    # LiteRT 2.1 gives 1171; rounded twice the first operand would make it 1172.
    scales = [tf.constant(np.float32(s)) for s in (0.00022254171199165285, 0.0002603789616841823)]
    codes = [tf.constant(3094.0), tf.constant(-1538.0)]
    output = tf.constant(np.float32(0.00024590801331214607))
    assert arithmetic.sum_codes(codes, scales, output).numpy() == 1171


def test_halves_of_codes():
    codes = np.arange(-(2**15), 2**15, dtype=np.float32)[:, None]
    halves = arithmetic.split_halves(tf.constant(codes)).numpy()
    assert halves.min() == -128
    assert halves.max() == 128
    weights = RNG.integers(-127, 128, 65536).astype(np.float32)
    rows = codes.reshape(64, 1024)
    kernel = weights[: 1024 * 8].reshape(1024, 8)
    found = arithmetic.linear_of_codes(tf.constant(rows), lambda x: x @ tf.constant(kernel))
    assert found.dtype == tf.float64
    assert np.array_equal(found, rows.astype(np.int64) @ kernel.astype(np.int64))
