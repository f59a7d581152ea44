"""What a tensor is quantized to: bits, symmetry, granularity, rounding, and the range estimator.

Frozen dataclasses without behaviour; the maths is in `affine`, the range estimators in
`observers`, and what carries a scheme in a layer in `quantizers`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfcompress.quantization import observers
from tfcompress.quantization.observers import Observer

ROUNDINGS = ("nearest", "truncate", "stochastic")


def _check(scheme: WeightScheme | ActivationScheme) -> None:
    if not isinstance(scheme.num_bits, int) or not 2 <= scheme.num_bits <= 8:
        raise ValueError(f"Expected `num_bits` from 2 to 8. Received: {scheme.num_bits!r}.")
    if scheme.rounding not in ROUNDINGS:
        raise ValueError(f"Expected `rounding` in {ROUNDINGS}. Received: {scheme.rounding!r}.")
    if not isinstance(scheme.observer, Observer):
        raise TypeError(f"Expected `observer` to be an Observer. Received: {scheme.observer!r}.")
    if scheme.observer.every_batch and type(scheme.observer).update is Observer.update:
        raise ValueError(
            "Expected an observer with every_batch=True to implement update(state, batch). "
            f"Received: {scheme.observer!r}. Implement it, or leave every_batch out: the range "
            "then stays as calibration estimates it."
        )


@dataclasses.dataclass(frozen=True)
class WeightScheme:
    """How kernels are quantized.

    Attributes:
        num_bits: 2 to 8.
        symmetric: Zero point 0. LiteRT holds no other weights.
        per_channel: One scale per output channel, else one per kernel.
        narrow_range: Codes −(2^(b−1)−1) … 2^(b−1)−1, without the lowest one.
        rounding: `"nearest"`, `"truncate"` (towards −∞) or `"stochastic"` (nearest in inference).
        power_of_two: Scales are powers of two (fixed point).
        observer: Range estimator. `MinMax` follows the kernel in every step; any other is run
            when the model is quantized and then stays fixed.
    """

    num_bits: int = 8
    symmetric: bool = True
    per_channel: bool = True
    narrow_range: bool = True
    rounding: str = "nearest"
    power_of_two: bool = False
    observer: Observer = dataclasses.field(default_factory=observers.MinMax)

    def __post_init__(self):
        _check(self)


@dataclasses.dataclass(frozen=True)
class ActivationScheme:
    """How activations are quantized: one scale and zero point per tensor.

    Attributes:
        num_bits: 2 to 8. Below 8 a model trains, but LiteRT cannot hold it.
        symmetric: Zero point 0, else affine.
        narrow_range: Without the lowest code.
        rounding: `"nearest"`, `"truncate"` (towards −∞) or `"stochastic"` (nearest in inference).
        power_of_two: Scales are powers of two (fixed point).
        observer: Range estimator.
    """

    num_bits: int = 8
    symmetric: bool = False
    narrow_range: bool = False
    rounding: str = "nearest"
    power_of_two: bool = False
    observer: Observer = dataclasses.field(default_factory=observers.MovingAverage)

    def __post_init__(self):
        _check(self)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """What one layer gets: its kernels' scheme and the scheme of the tensor it produces.

    Attributes:
        weights: Scheme of its kernels.
        activations: Scheme of the tensor that it produces.
    """

    weights: WeightScheme = dataclasses.field(default_factory=WeightScheme)
    activations: ActivationScheme = dataclasses.field(default_factory=ActivationScheme)

    def __post_init__(self):
        for name, cls in (("weights", WeightScheme), ("activations", ActivationScheme)):
            value = getattr(self, name)
            if not isinstance(value, cls):
                raise TypeError(f"Expected `{name}` to be a {cls.__name__}. Received: {value!r}.")


#: Schemes by name.
PRESETS: dict[str, Scheme] = {
    "int8": Scheme(),
    "w4a8": Scheme(weights=WeightScheme(num_bits=4)),
    "w4a4": Scheme(WeightScheme(num_bits=4), ActivationScheme(num_bits=4)),
}


def resolve(scheme: Scheme | str | None) -> Scheme | None:
    """Turns a preset's name into its scheme; `None` stays `None` (left in float).

    Raises:
        ValueError: An unknown name.
        TypeError: Anything else.
    """
    if scheme is None or isinstance(scheme, Scheme):
        return scheme
    if isinstance(scheme, str):
        if scheme in PRESETS:
            return PRESETS[scheme]
        raise ValueError(f"Expected one of {sorted(PRESETS)} or a Scheme. Received: {scheme!r}.")
    raise TypeError(f"Expected a Scheme, its name or None. Received: {scheme!r}.")


def scheme_config(scheme: WeightScheme | ActivationScheme) -> dict[str, Any]:
    """The fields of a scheme as plain values, for `get_config`."""
    fields = {f.name: getattr(scheme, f.name) for f in dataclasses.fields(scheme)}
    return {**fields, "observer": keras.saving.serialize_keras_object(scheme.observer)}


def scheme_from_config(cls: type, config: dict[str, Any] | Any):
    """The reverse of `scheme_config`; a scheme passes through."""
    if isinstance(config, cls):
        return config
    observer = keras.saving.deserialize_keras_object(config["observer"])
    return cls(**{**config, "observer": observer})
