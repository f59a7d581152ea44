"""What a quantizer does not follow is refused, so that no option is ignored in silence."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfcompress.quantization.observers import MinMax, MovingAverage
from tfcompress.quantization.options import ActivationOptions, WeightOptions


def require_bits(quantizer: Any, options: WeightOptions | ActivationOptions, *bits: int) -> None:
    """Raises `ValueError` for a number of bits that the method has no grid for."""
    if options.num_bits not in bits:
        raise ValueError(
            f"Expected `num_bits` in {bits} for {type(quantizer).__name__}. "
            f"Received: {options.num_bits}."
        )


def require_usual(quantizer: Any, options: WeightOptions | ActivationOptions, *but: str) -> None:
    """Raises `ValueError` for an option that is not the usual one and that the method ignores.

    Args:
        quantizer: Named in the message.
        options: Of the scheme.
        *but: Options that the method does follow.
    """
    is_weights = isinstance(options, WeightOptions)
    usual = {
        "symmetric": is_weights,
        "narrow_range": is_weights,
        "rounding": "nearest",
        "power_of_two": False,
    }
    for name, value in usual.items():
        if name not in but and getattr(options, name) != value:
            raise ValueError(
                f"Expected `{name}={value!r}` with {type(quantizer).__name__}, which has no other. "
                f"Received: {getattr(options, name)!r}."
            )
    if "observer" not in but and type(options.observer) not in (MinMax, MovingAverage):
        raise ValueError(
            f"Expected no `observer` with {type(quantizer).__name__}, which finds its scale by "
            f"itself. Received: {options.observer!r}."
        )


def require_never_negative(quantizer: Any, low: tf.Tensor) -> None:
    """Raises where a tensor has values below 0, which a quantizer of 0 … α would cut off."""
    advice = (
        f"Expected a tensor that is never negative for {type(quantizer).__name__}: the output of a "
        "ReLU, a sigmoid or the like. Give the quantizer to those alone, for instance by "
        'QuantizationConfig(by_type={"ReLU": …}).'
    )
    if tf.executing_eagerly():
        if float(low) < 0:
            raise ValueError(f"{advice} Received: a smallest value of {float(low):g}.")
    else:
        tf.debugging.assert_greater_equal(low, 0.0, message=advice)
