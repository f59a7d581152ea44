"""The sum of gradients over workers that send each other codes, and scales, in place of floats.

Every worker gathers the codes of all and sums what they stand for, in the same order, so that the
sums are equal to the bit. One buffer of int32 goes through the network in a step: the scales of all
gradients as their bits, then the codes of all gradients, packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfcompress.quantization.gradients.packing import pack, unpack, words
from tfcompress.quantization.gradients.rounding import Grid

#: The replicas' rows of words, `(replicas, words)`, from the row of this one, `(words,)`.
Gather = Callable[[tf.Tensor], tf.Tensor]


def gather(row: tf.Tensor) -> tf.Tensor:
    """The rows of all replicas, in their order; within a replica's context."""
    return tf.distribute.get_replica_context().all_gather(row[None], axis=0)


def message_words(shapes: Sequence[Sequence[int]], scales: int, num_bits: int) -> int:
    """Words of int32 that a replica sends to each other one in a step.

    Args:
        shapes: Of the gradients.
        scales: Number of scales of all gradients.
        num_bits: Of a code.
    """
    return scales + words(sum(math.prod(shape) for shape in shapes), num_bits)


def message(codes: Sequence[tf.Tensor], sizes: Sequence[tf.Tensor], num_bits: int) -> tf.Tensor:
    """The row of words of a replica.

    Args:
        codes: Of each gradient, float32.
        sizes: Of each gradient, float32.
        num_bits: Of a code.
    """
    flat = tf.concat([tf.reshape(each, (-1,)) for each in codes], 0)
    scales = tf.concat([tf.reshape(each, (-1,)) for each in sizes], 0)
    packed = pack(tf.cast(flat, tf.int32), num_bits)
    return tf.concat([tf.bitcast(scales, tf.int32), packed], 0)


def sum_over_replicas(
    codes: Sequence[tf.Tensor], sizes: Sequence[tf.Tensor], grid: Grid, gather: Gather = gather
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """The sum over all replicas of what their codes stand for.

    Args:
        codes: Of each gradient of this replica, float32, of static shape.
        sizes: Of each gradient, float32; broadcasts against its codes.
        grid: Of the codes.
        gather: Exchanges the rows.

    Returns:
        The sum for each gradient, NaN as a whole where a replica's is not finite; and whether the
        gradients of all replicas are finite, a boolean scalar.
    """
    shapes = [tuple(each.shape) for each in codes]
    size_shapes = [tuple(each.shape) for each in sizes]
    scales = sum(math.prod(shape) for shape in size_shapes)
    rows = gather(message(codes, sizes, grid.num_bits))
    counts = [math.prod(shape) for shape in shapes]

    def values(row: tf.Tensor) -> list[tf.Tensor]:
        size_parts = _split(tf.bitcast(row[:scales], tf.float32), size_shapes)
        flat = unpack(row[scales:], sum(counts), grid.num_bits)
        code_parts = _split(tf.cast(flat, tf.float32), shapes)
        return [grid.decode(c, s) for c, s in zip(code_parts, size_parts, strict=True)]

    def add(i: tf.Tensor, totals: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        return i + 1, [t + v for t, v in zip(totals, values(rows[i]), strict=True)]

    # A loop, in which the values of one replica at a time are in memory.
    start = (tf.constant(0), [tf.zeros(shape) for shape in shapes])
    _, totals = tf.while_loop(lambda i, _: i < tf.shape(rows)[0], add, start, parallel_iterations=1)
    is_finite = tf.reduce_all(
        tf.math.is_finite(tf.bitcast(tf.reshape(rows[:, :scales], (-1,)), tf.float32))
    )
    return list(totals), is_finite


def _split(flat: tf.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[tf.Tensor]:
    parts = tf.split(flat, [math.prod(shape) for shape in shapes])
    return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
