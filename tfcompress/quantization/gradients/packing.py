"""Codes of a few bits in words of 32: TensorFlow's collectives take no smaller integers."""

from __future__ import annotations

import tensorflow as tf

_WORD = 32


def codes_per_word(num_bits: int) -> int:
    """How many codes of 1 to 16 bits a word holds; none lies in two words."""
    return _WORD // num_bits


def words(count: int, num_bits: int) -> int:
    """How many words hold `count` codes."""
    return -(-count // codes_per_word(num_bits))


def pack(codes: tf.Tensor, num_bits: int) -> tf.Tensor:
    """Packs codes, the first one into the lowest bits of the first word.

    Args:
        codes: int32 of shape `(n,)`, 0 to 2ᵇ − 1. Of others the lowest b bits are kept.
        num_bits: b, 1 to 16.

    Returns:
        int32 of shape `(words(n, b),)`.
    """
    each = codes_per_word(num_bits)
    count = codes.shape[0]
    padded = tf.pad(codes, [[0, words(count, num_bits) * each - count]])
    # Unsigned, so that the last code may reach the sign's bit.
    columns = tf.bitcast(tf.reshape(padded, (-1, each)), tf.uint32)
    columns = tf.bitwise.bitwise_and(columns, tf.constant(2**num_bits - 1, tf.uint32))
    packed = columns[:, 0]
    for i in range(1, each):
        shifted = tf.bitwise.left_shift(columns[:, i], tf.constant(i * num_bits, tf.uint32))
        packed = tf.bitwise.bitwise_or(packed, shifted)
    return tf.bitcast(packed, tf.int32)


def unpack(packed: tf.Tensor, count: int, num_bits: int) -> tf.Tensor:
    """The codes that `pack` has packed: int32 of shape `(count,)`."""
    unsigned = tf.bitcast(packed, tf.uint32)
    mask = tf.constant(2**num_bits - 1, tf.uint32)
    columns = [
        tf.bitwise.bitwise_and(
            tf.bitwise.right_shift(unsigned, tf.constant(i * num_bits, tf.uint32)), mask
        )
        for i in range(codes_per_word(num_bits))
    ]
    return tf.bitcast(tf.reshape(tf.stack(columns, 1), (-1,))[:count], tf.int32)
