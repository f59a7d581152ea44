"""The quantizer of a tensor: a layer in the graph that rounds an activation to its codes.

It belongs to a tensor, not to the layer that produces it. A range that is used in several places
(the inputs and the output of a concatenation) is one such layer called several times, which
Keras keeps shared on load and on clone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.finite import finite_gradient
from tfcompress.model.graph import producer
from tfcompress.model.linking import Links
from tfcompress.model.stepwise import Stepwise
from tfcompress.quantization.fake_quant.affine import code_range
from tfcompress.quantization.fake_quant.moving_range import (
    moved_state,
    moved_statistics,
    range_moves,
    updated_and_rounded,
)
from tfcompress.quantization.fake_quant.requantize import requantized
from tfcompress.quantization.fake_quant.shared_trace import can_share_updates
from tfcompress.quantization.fake_quant.tensor_quantizer import TensorQuantizer
from tfcompress.quantization.fake_quant.uniform_activations import (
    UniformActivations,
    rounding_of,
)
from tfcompress.quantization.fake_quant.variables import VariableSpec, add_variables
from tfcompress.quantization.gradients.backward import (
    GradientScheme,
    gradient_scheme,
    with_quantized_gradient,
)
from tfcompress.quantization.observers import MinMax
from tfcompress.quantization.options import INT16_BITS
from tfcompress.quantization.placement.upstream import link_rounding, upstream_quantizer
from tfcompress.quantization.schemes import (
    ActivationScheme,
    scheme_config,
    scheme_from_config,
)


@keras.saving.register_keras_serializable(package="tfcompress")
class FakeQuantize(Stepwise, TensorQuantizer, keras.layers.Layer):
    """Rounds a tensor to the codes that LiteRT will store for it.

    Its range comes from calibration or from the first training batch. Then it moves as the
    scheme's observer says, or the optimizer trains the quantizer's variables, until it is frozen.
    Until a range is known, and until the schedule starts it, the tensor passes unchanged.

    Args:
        scheme: Options, observer and quantizer.
        fixed_range: `(low, high)` that LiteRT prescribes for an op, such as (0, 255/256) for a
            sigmoid; it neither calibrates nor moves.
        source: Name of the layer whose tensor this is, for reports.
        gradients: Scheme of the gradient that flows back through the tensor.

    Attributes:
        quantizer: The scheme's quantizer; the uniform one where the range is fixed.
        state: The quantizer's variables by name.
        rounds_input: Whether it rounds an input of the model.
        enabled: 0 while the tensor passes unchanged: a variable that a schedule sets.
        frozen: 1 while range and trained variables stay as they are: likewise. A fixed range has
            none.
        statistics: State of the observer (see `Observer.update`). A fixed range has none.
    """

    channels_like = keras.layers.Identity
    returns_input = True

    def __init__(
        self,
        scheme: ActivationScheme | dict[str, Any] | None = None,
        *,
        fixed_range: tuple[float, float] | None = None,
        source: str | None = None,
        gradients: GradientScheme | dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        kwargs.pop("dtype", None)
        # float32 under any policy: 16 bits cannot hold 256 codes over a range exactly.
        super().__init__(dtype="float32", **kwargs)
        self.scheme = scheme_from_config(ActivationScheme, scheme or ActivationScheme())
        self.fixed_range = None if fixed_range is None else tuple(fixed_range)
        is_fixed = self.fixed_range is not None
        self.quantizer = UniformActivations() if is_fixed else self.scheme.quantizer
        self.source = source
        self.gradients = gradient_scheme(gradients)
        self.supports_masking = True
        self._observe: Callable[[tf.Tensor], None] | None = None
        self._also: Callable[[], tf.Tensor] | None = None
        self.rounds_input = False
        # Call index → the quantizer whose codes that call rounds again.
        self._given = Links()
        # At the steps of a loop: scale and zero point, rounding in training, extremes that were
        # observed. In tuples, for Keras would track what is in lists.
        self._common: tuple[tf.Tensor, tf.Tensor] | None = None
        self._rounding: Callable[[tf.Tensor], tf.Tensor] | None = None
        self._seen: tuple[tuple[tf.Tensor, tf.Tensor], ...] = ()

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        specs = dict(self.quantizer.variables(self.scheme))
        if self.fixed_range is not None:
            values = self._values_of(*self.fixed_range)
            specs = {n: dataclasses.replace(s, initial=float(values[n])) for n, s in specs.items()}
        self.state = add_variables(self, specs)
        self.enabled = self._switch("enabled", 1.0)
        if self.fixed_range is None:
            self.frozen = self._switch("frozen", 0.0)
            # Running low, high and the sum of their weights, which debiases the average.
            self.statistics = add_variables(self, {"statistics": VariableSpec((3,))})["statistics"]
        trained = {
            n: dataclasses.replace(s, trainable=False, regularizer=None)
            for n, s in specs.items()
            if s.trainable
        }
        # What a trained variable was when it was frozen: an optimizer with momentum moves it on.
        held = add_variables(self, {f"held_{name}": spec for name, spec in trained.items()})
        self._held = dict(zip(trained, held.values(), strict=True))
        self.built = True

    def _switch(self, name: str, value: float) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=(),
            initializer=keras.initializers.Constant(value),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    # --- the range ---------------------------------------------------------------------------

    @property
    def has_moving_range(self) -> bool:
        """Whether the observer moves the range in training, once it is known."""
        return self.fixed_range is None and range_moves(self.scheme)

    def parameters(self) -> tuple[tf.Tensor, tf.Tensor]:
        """`(scale, zero_point)` of the codes; a scale of 0 before a range is known."""
        if self._common is not None:
            return self._common
        values = {
            name: finite_gradient(v.value) if v.trainable else v.value
            for name, v in self.state.items()
        }
        for name, held in self._held.items():
            values[name] = tf.where(self.frozen.value >= 0.5, held.value, values[name])
        return self.quantizer.parameters(values, self.scheme)

    @property
    def scale(self) -> tf.Tensor:
        """The scale of the codes; 0 before a range is known."""
        return self.parameters()[0]

    @property
    def zero_point(self) -> tf.Tensor:
        """The code of real 0 in the file.

        Fewer than 256 codes are the highest of int8, so that its own end is their upper end.
        """
        zero_point = self.parameters()[1]
        highest = code_range(self.scheme.num_bits)[1]
        return zero_point + float(code_range(8)[1] - highest) if self.has_few_codes else zero_point

    @property
    def has_few_codes(self) -> bool:
        """Whether the codes are fewer than int8 has: the file must hold values in their range."""
        return self.scheme.num_bits < 8

    @property
    def is_int16(self) -> bool:
        return self.scheme.num_bits == INT16_BITS

    @property
    def given_scale(self) -> tf.Tensor:
        """The scale of the codes for the values that are rounded; here that of what it gives."""
        return self.scale

    @property
    def given_zero_point(self) -> tf.Tensor:
        """The code of 0 among the values that are rounded, likewise."""
        return self.zero_point

    def parameters_of(self, low: float, high: float) -> tuple[float, float]:
        """`(scale, zero_point)` that the quantizer gives to a range."""
        scale, zero_point = self.quantizer.parameters(self._values_of(low, high), self.scheme)
        return float(scale), float(zero_point)

    def _values_of(self, low: float, high: float) -> dict[str, tf.Tensor]:
        bounds = tf.constant(low, tf.float32), tf.constant(high, tf.float32)
        return dict(self.quantizer.from_range(*bounds, self.scheme))

    def set_range(self, low: float, high: float) -> None:
        """Sets the range; a moving average goes on from here.

        Raises:
            ValueError: The quantizer has a fixed range, or the bounds are no finite interval.
        """
        if self.fixed_range is not None:
            raise ValueError(f"Expected a quantizer whose range can be set. Received: {self.name}.")
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise ValueError(
                f"Expected finite low ≤ high for the tensor of {self.source or self.name!r}, from "
                f"{type(self.scheme.observer).__name__}. Received: low={low}, high={high}."
            )
        self.statistics.assign([low, high, 1.0])
        for name, value in self._values_of(low, high).items():
            self.state[name].assign(value)
            if name in self._held:
                self._held[name].assign(value)

    @property
    def range(self) -> tuple[float, float]:
        """The real values of the smallest and the largest code."""
        qmin, qmax = code_range(self.scheme.num_bits, self.scheme.narrow_range)
        # A variable of several replicas is no number, but converts to a tensor.
        scale, zero_point = (float(tf.convert_to_tensor(value)) for value in self.parameters())
        return (qmin - zero_point) * scale, (qmax - zero_point) * scale

    def active_scale(self) -> tf.Tensor:
        if self._observe is not None:
            return tf.zeros(())
        return self.scale * self.enabled.value

    def observe(self, callback: Callable[[tf.Tensor], None] | None) -> None:
        """Hands every tensor to `callback(values)` and passes it on in float; `None` ends it."""
        self._observe = callback

    def _update(self, x: tf.Tensor) -> None:
        # No assignment stands inside a branch: under a distribution strategy none could run.
        old, frozen, scheme = self.statistics.value, self.frozen.value, self.scheme
        moving, statistics = moved_statistics(x, old, frozen, scheme=scheme)
        self.statistics.assign(statistics)
        # Read again, for on several replicas it is their mean by now.
        values = (variable.value for variable in self.state.values())
        found = moved_state(
            moving, self.statistics.value, *values, scheme=scheme, names=tuple(self.state)
        )
        for variable, value in zip(self.state.values(), found, strict=True):
            variable.assign(value)
        for name, held in self._held.items():
            held.assign(tf.where(frozen < 0.5, self.state[name].value, held.value))

    # --- the steps of a loop -----------------------------------------------------------------

    @contextlib.contextmanager
    def over_steps(self, calls: Sequence[int], training: bool) -> Iterator[None]:
        """The range is that of before the loop; what its steps observe moves it afterwards."""
        self._seen = ()
        moves = training and self.trainable and self.fixed_range is None
        extremes_suffice = isinstance(self.scheme.observer, MinMax) or not range_moves(self.scheme)
        if moves and not (self._updates_in_one_call() and extremes_suffice):
            yield
            return
        try:
            if not training:
                self._common = self.parameters()
            elif self._rounds_alike():
                scale, zero_point = self.parameters()
                active = scale * self.enabled.value
                self._rounding = rounding_of(
                    scale, zero_point, active, self.scheme, self.rounds_input
                )
            yield
        finally:
            self._common = self._rounding = None

    def seen(self) -> list[tuple[tf.Tensor, tf.Tensor]]:
        return list(self._seen)

    def take_seen(self, extremes: tf.Tensor) -> None:
        if self._seen:
            self._update(extremes)

    # --- the tensor --------------------------------------------------------------------------

    def link(self, inputs: keras.KerasTensor, call_index: int) -> None:
        self.rounds_input = self.rounds_input or producer(inputs) is None
        if call_index:
            self._given.set(call_index, upstream_quantizer(inputs))
        link_rounding(inputs, self)

    def round_by(self, codes: Callable[[tf.Tensor], tf.Tensor], otherwise: tf.Tensor) -> tf.Tensor:
        if not self.quantizer.rounds_to_nearest(self.scheme):
            return otherwise
        scale = self.active_scale()
        safe = tf.where(scale > 0, scale, 1.0)
        return tf.where(scale > 0, codes(safe) * safe, otherwise)

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        computed: bool = False,
        call_index: int = 0,
    ) -> tf.Tensor:
        """Rounds a tensor.

        Args:
            inputs: The tensor, float32.
            training: Whether it is a call in training.
            computed: Whether an int8 operator computes the tensor, in the plan of the model. If
                not, it is an input, comes from a call in float, or holds codes of another range.
                It is an argument of the call, so that every copy of a model has it.
            call_index: Which call it is of those that round codes of another range, from 1 on; 0
                for what rounds real values.
        """
        if self._observe is not None:
            self._observe(self._observed(inputs))
            return inputs
        given = None if training else self._given.get(call_index)
        if given is not None:
            inputs = requantized(inputs, given, self)
        outputs = self._quantized(inputs, bool(training))
        if training and self.gradients is not None:
            return with_quantized_gradient(outputs, self.gradients)
        return outputs

    def _quantized(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        if self._rounding is not None:
            if self.trainable and self.fixed_range is None:
                self._seen += ((tf.reduce_min(inputs), tf.reduce_max(inputs)),)
            return self._rounding(inputs)
        if training and self.trainable and self.fixed_range is None:
            if self._updates_in_one_call():
                outputs = updated_and_rounded(
                    (inputs,),
                    (self.statistics, self.frozen, self.enabled, *self.state.values()),
                    scheme=self.scheme,
                    rounds_input=self.rounds_input,
                )
                outputs.set_shape(inputs.shape)
                return outputs
            self._update(tf.stop_gradient(self._observed(inputs)))
        quantizer = self.quantizer
        quantize = quantizer.quantize_input if self.rounds_input else quantizer.quantize_known
        scale, zero_point = self.parameters()
        active = scale * self.enabled.value
        outputs = quantize(inputs, scale, zero_point, active, self.scheme, training)
        outputs.set_shape(inputs.shape)
        return outputs

    def _updates_in_one_call(self) -> bool:
        """Whether `updated_and_rounded` does all that a training step does to the tensor."""
        if not self._rounds_alike() or self._also is not None:
            return False
        return can_share_updates((self.statistics, self.frozen, self.enabled, *self.state.values()))

    def _rounds_alike(self) -> bool:
        """Whether one function of the range rounds every tensor."""
        # A subclass may do anything, and stochastic rounding needs random numbers of its own.
        is_uniform = type(self.quantizer) is UniformActivations
        return is_uniform and self.scheme.rounding != "stochastic"

    def observe_also(self, values: Callable[[], tf.Tensor]) -> None:
        """Makes the range hold what `values()` gives too, beside the tensor that is rounded."""
        self._also = values

    def _observed(self, inputs: tf.Tensor) -> tf.Tensor:
        if self._also is None:
            return inputs
        also = tf.cast(self._also(), inputs.dtype)
        bounds = tf.stack([tf.reduce_min(also), tf.reduce_max(also)])
        return tf.concat([tf.reshape(inputs, [-1]), bounds], 0)

    def stripped(self) -> list:
        """Nothing is left of it in a plain model."""
        return []

    def compute_output_spec(
        self,
        inputs: keras.KerasTensor,
        training: bool | None = None,
        computed: bool = False,
        call_index: int = 0,
    ) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("dtype")
        return {
            **config,
            "scheme": scheme_config(self.scheme),
            "fixed_range": self.fixed_range,
            "source": self.source,
            "gradients": keras.saving.serialize_keras_object(self.gradients),
        }
