"""The interface of activation quantizers: how scale and zero point are found, and the gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import tensorflow as tf

from tfcompress.quantization.configurable import Configurable
from tfcompress.quantization.fake_quant.affine import (
    code_range,
    range_parameters,
    round_through,
    scale_and_round,
)
from tfcompress.quantization.fake_quant.variables import VariableSpec
from tfcompress.quantization.options import ActivationOptions, describe_details


@dataclasses.dataclass(frozen=True)
class ActivationQuantizer(Configurable):
    """Base class of activation quantizers, for your own ones: `ActivationScheme(quantizer=…)`.

    A tensor is put on the codes of one scale and one zero point, for LiteRT holds no other. A
    subclass says which variables these come from, whether the optimizer trains them, and what the
    gradient is. It is a frozen dataclass whose fields are its options; one object serves every
    tensor of a model. Register it with `keras.saving.register_keras_serializable()`, or pass the
    class as a custom object, so that a model that uses it can be loaded and cloned.

    Without trainable variables the range moves in training as the scheme's observer says. With
    them, calibration (or the first training batch) gives the range from which they start.
    """

    def check(self, options: ActivationOptions) -> None:
        """Raises `ValueError` for options of a scheme that the quantizer cannot follow."""

    def variables(self, options: ActivationOptions) -> Mapping[str, VariableSpec]:
        """The variables that it keeps for each tensor, by name: 0 before a range is known."""
        return {"scale": VariableSpec(), "zero_point": VariableSpec()}

    def from_range(
        self, low: tf.Tensor, high: tf.Tensor, options: ActivationOptions
    ) -> Mapping[str, tf.Tensor]:
        """The values of all variables for a range, of scalar float32 bounds."""
        scale, zero_point = range_parameters(options, low, high)
        return {"scale": scale, "zero_point": zero_point}

    def parameters(
        self, state: Mapping[str, tf.Tensor], options: ActivationOptions
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`(scale, zero_point)` by the values of the variables, differentiably.

        The zero point is a whole number. A scale of 0 says that no range is known: the tensor then
        passes unchanged.
        """
        return state["scale"], state["zero_point"]

    def round(self, codes: tf.Tensor, options: ActivationOptions, training: bool) -> tf.Tensor:
        """Rounds clipped codes to whole numbers, differentiably."""
        return round_through(codes, options.rounding, training)

    def quantize(
        self,
        x: tf.Tensor,
        scale: tf.Tensor,
        zero_point: tf.Tensor,
        options: ActivationOptions,
        training: bool,
    ) -> tf.Tensor:
        """Rounds a tensor to its codes and back, differentiably.

        By default with the straight-through gradient to `x`, and to `scale` that of learned step
        sizes (Esser et al. 2020, eq. 3).

        Args:
            x: float32 of any shape.
            scale: Positive scalar.
            zero_point: Whole number.
            options: What the scheme asks for.
            training: Whether it is a training step.
        """
        codes = code_range(options.num_bits, options.narrow_range)
        return scale_and_round(
            x, scale, zero_point, codes, lambda y: self.round(y, options, training)
        )

    def quantize_known(
        self,
        x: tf.Tensor,
        scale: tf.Tensor,
        zero_point: tf.Tensor,
        active: tf.Tensor,
        options: ActivationOptions,
        training: bool,
    ) -> tf.Tensor:
        """`quantize` where `active` > 0; where it is 0, `x` itself."""
        safe = tf.where(active > 0, scale, 1.0)
        return tf.where(active > 0, self.quantize(x, safe, zero_point, options, training), x)

    def quantize_input(
        self,
        x: tf.Tensor,
        scale: tf.Tensor,
        zero_point: tf.Tensor,
        active: tf.Tensor,
        options: ActivationOptions,
        training: bool,
    ) -> tf.Tensor:
        """`quantize_known` for an input of the model.

        Apps and the runtime round an input that lies exactly between two codes to the even one, so
        this must do the same.
        """
        return self.quantize_known(x, scale, zero_point, active, options, training)

    def rounds_to_nearest(self, options: ActivationOptions) -> bool:
        """Whether inference rounds as the runtime does, so that sums may be rounded exactly."""
        return options.rounding == "nearest"

    def limits(self, options: ActivationOptions) -> tuple[str, ...]:
        """What of it no `.tflite` can hold: such a model trains, and its export is refused."""
        limits = []
        if options.num_bits < 8 and options.symmetric:
            limits.append(
                f"symmetric activations of {options.num_bits} bits (their codes do not end where "
                "int8 does; affine ones do)"
            )
        if options.rounding == "truncate":
            limits.append("truncated activations (LiteRT rounds to nearest)")
        if options.narrow_range:
            limits.append("narrow-range activations (LiteRT's use all 256 codes)")
        return tuple(limits)

    def describe(self, options: ActivationOptions) -> str:
        """What a printed plan says of it."""
        return f"int{options.num_bits}{describe_details(options)}, {type(self).__name__}"
