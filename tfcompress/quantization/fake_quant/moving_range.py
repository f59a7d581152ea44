"""How the range of a tensor moves in training: by its observer, from batch to batch.

Pure functions of the observer's statistics and of the quantizer's variables. They are traced once
for all layers.
"""

from __future__ import annotations

import tensorflow as tf

from tfcompress.quantization.fake_quant.shared_trace import (
    SharedVariable,
    shared_trace,
    shared_update,
)
from tfcompress.quantization.fake_quant.uniform_activations import quantize_in_place
from tfcompress.quantization.observers import MinMax
from tfcompress.quantization.schemes import ActivationScheme


def range_moves(scheme: ActivationScheme) -> bool:
    """Whether the range follows the observer in training; trained variables go their own way."""
    is_trained = any(spec.trainable for spec in scheme.quantizer.variables(scheme).values())
    return scheme.observer.every_batch and not is_trained


def _statistics_after(
    x: tf.Tensor, old: tf.Tensor, frozen: tf.Tensor, *, scheme: ActivationScheme
) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether the range moves, and its statistics after the batch `x`."""
    moving = frozen < 0.5
    # Zeros say nothing of the range: a branch that starts from zeros has that of the first batch
    # that is none. An average would follow it a hundred steps late, and clip its gradients.
    old = tf.where(tf.reduce_any(old[:2] != 0), old, tf.zeros_like(old))
    if not range_moves(scheme):
        # Without calibration data the first batch gives the range, which then stays.
        moving = moving & (old[2] <= 0)
    observer = scheme.observer if scheme.observer.every_batch else MinMax()
    new = tf.cond(moving, lambda: observer.update(old, x), lambda: tf.identity(old))
    # An empty or non-finite batch (the last one of a replica) must not spoil the range.
    return moving, tf.where(tf.reduce_all(tf.math.is_finite(new)), new, old)


def _state_after(
    moving: tf.Tensor,
    statistics: tf.Tensor,
    *values: tf.Tensor,
    scheme: ActivationScheme,
    names: tuple[str, ...],
) -> tuple[tf.Tensor, ...]:
    """The quantizer's variables by the statistics; as they were where the range stays."""
    low, high, weight = tf.unstack(statistics, num=3)
    is_known = weight > 0
    known = moving & is_known
    weight = tf.where(is_known, weight, 1.0)
    low, high = low / weight, high / weight
    found = scheme.quantizer.from_range(low, high, scheme)
    return tuple(tf.where(known, found[n], old) for n, old in zip(names, values, strict=True))


moved_statistics = shared_trace(_statistics_after)
moved_state = shared_trace(_state_after)


@shared_update
def updated_and_rounded(
    tensors: tuple[tf.Tensor, ...],
    variables: tuple[SharedVariable, ...],
    *,
    scheme: ActivationScheme,
    rounds_input: bool,
) -> tf.Tensor:
    """A training step at one tensor: moves the range as its observer says, then rounds.

    Args:
        tensors: The tensor.
        variables: The quantizer's `statistics`, `frozen`, `enabled`, scale and zero point.
        scheme: The quantizer's.
        rounds_input: Whether the tensor is an input of the model.
    """
    (x,) = tensors
    statistics, frozen, enabled, *state = variables
    names = ("scale", "zero_point")
    old = [variable.read() for variable in state]
    moving, new = _statistics_after(
        tf.stop_gradient(x), statistics.read(), frozen.read(), scheme=scheme
    )
    statistics.assign(new)
    scale, zero_point = _state_after(moving, new, *old, scheme=scheme, names=names)
    for variable, value in zip(state, (scale, zero_point), strict=True):
        variable.assign(value)
    active = scale * enabled.read()
    return quantize_in_place(x, scale, zero_point, active, scheme, True, rounds_input)
