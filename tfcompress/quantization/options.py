"""What a quantizer is asked for: bits, symmetry, granularity, rounding and the range estimator.

Frozen dataclasses without behaviour. A scheme is these options and the quantizer that reads them.
"""

from __future__ import annotations

import dataclasses

from tfcompress.quantization.observers import MinMax, MovingAverage, Observer

ROUNDINGS = ("nearest", "truncate", "stochastic")
#: Bits of the activations that LiteRT's kernels of 16 bits take.
INT16_BITS = 16


@dataclasses.dataclass(frozen=True)
class WeightOptions:
    """The options of a `WeightScheme`, without its quantizer."""

    num_bits: int = 8
    symmetric: bool = True
    per_channel: bool = True
    narrow_range: bool = True
    rounding: str = "nearest"
    power_of_two: bool = False
    observer: Observer = dataclasses.field(default_factory=MinMax)

    def __post_init__(self) -> None:
        _check(self)


@dataclasses.dataclass(frozen=True)
class ActivationOptions:
    """The options of an `ActivationScheme`, without its quantizer."""

    num_bits: int = 8
    symmetric: bool = False
    narrow_range: bool = False
    rounding: str = "nearest"
    power_of_two: bool = False
    observer: Observer = dataclasses.field(default_factory=MovingAverage)

    def __post_init__(self) -> None:
        if self.num_bits == INT16_BITS:
            _check_int16(self)
            return
        _check(self)


def granularity(options: WeightOptions) -> str:
    """What shares a scale, to be printed behind the bits."""
    return "per channel" if options.per_channel else "per tensor"


def describe_details(options: WeightOptions | ActivationOptions) -> str:
    """What of the options differs from LiteRT's own, to be printed behind the bits."""
    usual = isinstance(options, WeightOptions)
    text = ""
    if options.symmetric != usual:
        text = " symmetric" if options.symmetric else " affine"
    if options.power_of_two:
        text += ", power of two"
    if options.rounding != "nearest":
        text += f", {options.rounding}"
    return text


def _check_int16(options: ActivationOptions) -> None:
    """Refuses what LiteRT's kernels of 16-bit activations do not compute."""
    if not options.symmetric or options.narrow_range or options.rounding == "truncate":
        raise ValueError(
            "Expected 16-bit activations that are symmetric, of all codes and not truncated: "
            "LiteRT's have the zero point 0. Received: "
            f"symmetric={options.symmetric}, narrow_range={options.narrow_range}, "
            f'rounding={options.rounding!r}. Use the preset "int16x8".'
        )
    _check_common(options)


def _check(options: WeightOptions | ActivationOptions) -> None:
    if not isinstance(options.num_bits, int) or not 2 <= options.num_bits <= 8:
        also = "" if isinstance(options, WeightOptions) else ", or 16"
        raise ValueError(f"Expected `num_bits` from 2 to 8{also}. Received: {options.num_bits!r}.")
    _check_common(options)


def _check_common(options: WeightOptions | ActivationOptions) -> None:
    if options.rounding not in ROUNDINGS:
        raise ValueError(f"Expected `rounding` in {ROUNDINGS}. Received: {options.rounding!r}.")
    observer = options.observer
    if not isinstance(observer, Observer):
        raise TypeError(f"Expected `observer` to be an Observer. Received: {observer!r}.")
    if observer.every_batch and type(observer).update is Observer.update:
        raise ValueError(
            "Expected an observer with every_batch=True to implement update(state, batch). "
            f"Received: {observer!r}. Implement it, or leave every_batch out: the range then "
            "stays as calibration estimates it."
        )
