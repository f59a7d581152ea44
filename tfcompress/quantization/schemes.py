"""What a tensor is quantized to: bits, symmetry, granularity, rounding, range estimator, quantizer.

The maths is in the quantizers of `fake_quant`; the range estimators are in `observers`.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, TypeVar

import keras

from tfcompress.quantization.fake_quant.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.fake_quant.uniform_activations import UniformActivations
from tfcompress.quantization.fake_quant.uniform_weights import UniformWeights
from tfcompress.quantization.fake_quant.weight_quantizer import WeightQuantizer
from tfcompress.quantization.gradients.backward import GradientScheme
from tfcompress.quantization.grids.binary import BinaryWeights
from tfcompress.quantization.grids.learned_step import LSQ, LSQPlus
from tfcompress.quantization.grids.ternary import TernaryWeights
from tfcompress.quantization.options import INT16_BITS, ActivationOptions, WeightOptions

# Codes of more bits take a byte each.
_MOST_PACKED_BITS = 4

_S = TypeVar("_S", "WeightScheme", "ActivationScheme")


@dataclasses.dataclass(frozen=True)
class WeightScheme(WeightOptions):
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
        quantizer: The grid and how it is trained; uniform by default. One of your own reads those
            of the options above that it has a use for.
        packed: Whether the file holds larger kernels of convolutions in 4 or 2 bits too. Such a
            convolution runs as a dense layer over patches: the same codes, in more time. Needs at
            most 4 bits, no groups, and channels last.
    """

    quantizer: WeightQuantizer = dataclasses.field(default_factory=UniformWeights)
    packed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.quantizer, WeightQuantizer):
            raise TypeError(
                f"Expected `quantizer` to be a WeightQuantizer. Received: {self.quantizer!r}."
            )
        self.quantizer.check(self)
        if not isinstance(self.packed, bool):
            raise TypeError(f"Expected `packed` to be True or False. Received: {self.packed!r}.")
        if self.packed and self.quantizer.num_bits(self) > _MOST_PACKED_BITS:
            raise ValueError(
                f"Expected `packed=True` with codes of at most {_MOST_PACKED_BITS} bits in the "
                f"file. Received: codes of {self.quantizer.num_bits(self)} bits, by num_bits="
                f"{self.num_bits} of {self.quantizer!r}."
            )


@dataclasses.dataclass(frozen=True)
class ActivationScheme(ActivationOptions):
    """How activations are quantized: one scale and zero point per tensor.

    Attributes:
        num_bits: 2 to 8. In the file codes take 8 bits: fewer are some of int8's, and nothing gets
            smaller or faster. Or 16, in all layers of a model, symmetric: see `"int16x8"`.
        symmetric: Zero point 0, else affine.
        narrow_range: Without the lowest code.
        rounding: `"nearest"`, `"truncate"` (towards −∞) or `"stochastic"` (nearest in inference).
        power_of_two: Scales are powers of two (fixed point).
        observer: Range estimator.
        quantizer: How scale and zero point are found and trained; from the range by default.
    """

    quantizer: ActivationQuantizer = dataclasses.field(default_factory=UniformActivations)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.quantizer, ActivationQuantizer):
            raise TypeError(
                f"Expected `quantizer` to be an ActivationQuantizer. Received: {self.quantizer!r}."
            )
        self.quantizer.check(self)
        if self.num_bits == INT16_BITS and type(self.quantizer) is not UniformActivations:
            raise ValueError(
                "Expected the uniform quantizer for 16-bit activations. Received: "
                f"{self.quantizer!r}. Leave `quantizer` out."
            )


@dataclasses.dataclass(frozen=True)
class Scheme:
    """What one layer gets: its kernels' scheme and the scheme of the tensor it produces.

    Attributes:
        weights: Scheme of its kernels.
        activations: Scheme of the tensor that it produces.
        gradients: Scheme of the gradient that flows back through that tensor; `None` leaves it as
            it is. It changes training alone.

    Example:
        >>> scheme = tfc.Scheme(
        ...     weights=tfc.WeightScheme(num_bits=4),
        ...     activations=tfc.ActivationScheme(observer=tfc.Percentile(99.9)),
        ... )
        >>> scheme.weights.num_bits, scheme.activations.num_bits
        (4, 8)
    """

    weights: WeightScheme = dataclasses.field(default_factory=WeightScheme)
    activations: ActivationScheme = dataclasses.field(default_factory=ActivationScheme)
    gradients: GradientScheme | None = None

    def __post_init__(self) -> None:
        for name, cls in (("weights", WeightScheme), ("activations", ActivationScheme)):
            value = getattr(self, name)
            if not isinstance(value, cls):
                raise TypeError(f"Expected `{name}` to be a {cls.__name__}. Received: {value!r}.")
        if not isinstance(self.gradients, GradientScheme | None):
            raise TypeError(
                "Expected `gradients` to be a GradientScheme or None. "
                f"Received: {self.gradients!r}."
            )
        if self.activations.num_bits == INT16_BITS and self.weights.num_bits != 8:
            raise ValueError(
                "Expected weights of 8 bits with 16-bit activations, which LiteRT's kernels "
                f"multiply. Received: {self.weights.num_bits} bits."
            )


_INT16X8 = Scheme(activations=ActivationScheme(INT16_BITS, symmetric=True))

#: Schemes by name.
PRESETS: dict[str, Scheme] = {
    "int8": Scheme(),
    "w8a8": Scheme(),
    "int4": Scheme(weights=WeightScheme(num_bits=4)),
    "w4a8": Scheme(weights=WeightScheme(num_bits=4)),
    "int4-packed": Scheme(weights=WeightScheme(num_bits=4, packed=True)),
    "w4a4": Scheme(WeightScheme(num_bits=4), ActivationScheme(num_bits=4)),
    "lsq-w4a8": Scheme(WeightScheme(4, quantizer=LSQ()), ActivationScheme(quantizer=LSQPlus())),
    "int2": Scheme(weights=WeightScheme(2, narrow_range=False, quantizer=LSQ())),
    "w2a8": Scheme(weights=WeightScheme(2, narrow_range=False, quantizer=LSQ())),
    "int2-packed": Scheme(
        weights=WeightScheme(2, narrow_range=False, quantizer=LSQ(), packed=True)
    ),
    "ternary": Scheme(weights=WeightScheme(2, quantizer=TernaryWeights())),
    "binary": Scheme(weights=WeightScheme(2, quantizer=BinaryWeights())),
    "int16x8": _INT16X8,
    "w8a16": _INT16X8,
}

_FLOAT_FILE = (
    "That is a file of a float model, which nothing is trained for: export_tflite(model, path, "
    'weights="{}").'
)
#: Names that people look for under `quantize` → what to do instead.
_ELSEWHERE = {
    **dict.fromkeys(("float16", "fp16", "half"), _FLOAT_FILE.format("float16")),
    **dict.fromkeys(
        ("dynamic", "dynamic_range", "w8a32", "dynamic_wi8_afp32"), _FLOAT_FILE.format("dynamic")
    ),
    **dict.fromkeys(
        ("float32", "float", "none"),
        "A layer stays in float with the scheme None; export_tflite(model, path, allow_float=True) "
        "writes a model in float.",
    ),
    **dict.fromkeys(
        ("int16", "w16a16"),
        'LiteRT has no 16-bit weights. "int16x8" has 16-bit activations and int8 weights; it runs '
        "outside XNNPACK, many times slower than int8.",
    ),
    "uint8": 'LiteRT\'s codes are int8: "int8". For pixels: export_tflite(input_type="uint8").',
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
        hint = _ELSEWHERE.get(scheme.lower(), "")
        if not hint:
            near = difflib.get_close_matches(scheme.lower().replace("_", "-"), PRESETS, 1)
            own = "Scheme(WeightScheme(num_bits, quantizer=…), ActivationScheme(num_bits))"
            hint = f"Did you mean {near[0]!r}?" if near else f"Others are made by {own}."
        raise ValueError(
            f"Expected one of {sorted(PRESETS)} or a Scheme. Received: {scheme!r}. {hint}"
        )
    raise TypeError(f"Expected a Scheme, its name or None. Received: {scheme!r}.")


def scheme_config(scheme: WeightScheme | ActivationScheme) -> dict[str, Any]:
    """The fields of a scheme as plain values, for `get_config`."""
    fields = {f.name: getattr(scheme, f.name) for f in dataclasses.fields(scheme)}
    return {k: keras.saving.serialize_keras_object(v) for k, v in fields.items()}


def scheme_from_config(cls: type[_S], config: dict[str, Any] | _S) -> _S:
    """The reverse of `scheme_config`; a scheme passes through."""
    if not isinstance(config, dict):
        return config
    return cls(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})
