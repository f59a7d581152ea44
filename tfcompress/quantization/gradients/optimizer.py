"""An optimizer that is given quantized gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.quantization.gradients.rounding import dorefa, uniform

_METHODS = ("uniform", "qsgd", "dorefa")
_ROUNDINGS = ("stochastic", "nearest")


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedGradients(keras.optimizers.Optimizer):
    """Quantizes every gradient before it reaches an optimizer, as if few bits had been sent.

    The grid of b bits has 2ᵇ⁻¹ − 1 levels on either side of 0:

    - `"uniform"`: multiples of max|g| / (2ᵇ⁻¹ − 1);
    - `"qsgd"`: multiples of ‖g‖₂ / (2ᵇ⁻¹ − 1) (Alistarh et al. 2017, "QSGD", eq. 4);
    - `"dorefa"`: 2ᵇ levels without 0 (Zhou et al. 2016, "DoReFa-Net", eq. 12).

    With stochastic rounding the mean of what is applied is the gradient. With error feedback
    (Seide et al. 2014; Karimireddy et al. 2019) what rounding takes away is added to the next
    gradient, so that nothing is lost over many steps.

    It studies what low-precision gradients do to training; values stay float32, and nothing is
    faster. Clipping, weight decay, averaging and accumulation are the inner optimizer's, behind the
    quantization. The random numbers follow from `seed` and the step, so a resumed training draws
    the same. Under a distribution strategy each replica quantizes its own gradients, and keeps its
    own errors, of which a checkpoint has the first replica's.

    Args:
        optimizer: Any Keras optimizer; also one that wraps another.
        num_bits: 2 to 16.
        rounding: `"stochastic"` or `"nearest"`.
        error_feedback: Keep what rounding takes away; a variable for each trained one.
        per_channel: A scale for each index of a gradient's last axis, where it has two axes or
            more, instead of one for all.
        method: `"uniform"`, `"qsgd"` or `"dorefa"`.
        seed: Of the random numbers.
        name: Of the optimizer.

    Raises:
        TypeError: `optimizer` is no Keras optimizer.
        ValueError: An argument outside of its range.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile(tfc.QuantizedGradients(keras.optimizers.Adam(1e-3), num_bits=6), "mse")
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        num_bits: int = 8,
        rounding: str = "stochastic",
        error_feedback: bool = True,
        per_channel: bool = False,
        method: str = "uniform",
        seed: int = 0,
        name: str | None = None,
    ):
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise TypeError(f"Expected a Keras optimizer. Received: {optimizer!r}.")
        if not isinstance(num_bits, int) or not 2 <= num_bits <= 16:
            raise ValueError(f"Expected `num_bits` from 2 to 16. Received: {num_bits!r}.")
        for key, value, known in (("rounding", rounding, _ROUNDINGS), ("method", method, _METHODS)):
            if value not in known:
                raise ValueError(f"Expected `{key}` in {known}. Received: {value!r}.")
        # The learning rate is the inner optimizer's.
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = optimizer
        self.num_bits, self.rounding, self.method = num_bits, rounding, method
        self.error_feedback, self.per_channel, self.seed = error_feedback, per_channel, seed
        self._errors: list[keras.Variable] = []
        self._positions: dict[int, int] = {}
        self._trained: Callable[[], list[keras.Variable]] = list

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        if self.error_feedback:
            self._errors = [
                self.add_variable_from_reference(variable, name="gradient_error")
                for variable in variables
            ]
        self._positions = {id(variable): index for index, variable in enumerate(variables)}
        # A function, because Keras would track variables that are held here as the optimizer's.
        self._trained = lambda: list(variables)
        self.inner_optimizer.build(variables)
        super().build(variables)

    @property
    def variables(self) -> list[keras.Variable]:
        return [*super().variables, *self.inner_optimizer.variables]

    def apply(
        self,
        grads: Iterable[tf.Tensor | tf.IndexedSlices | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> Any:
        """Quantizes gradients and hands them to the inner optimizer.

        Args:
            grads: One per variable; `None` stays so, slices become tensors.
            trainable_variables: The variables; by default those that it was built with.
        """
        if not self.built:
            self.build(list(trainable_variables or ()))
        variables = self._trained() if trainable_variables is None else trainable_variables
        rounded = [
            None if gradient is None else self._rounded(gradient, self._positions[id(variable)])
            for gradient, variable in zip(grads, variables, strict=True)
        ]
        return self.inner_optimizer.apply(rounded, trainable_variables)

    def _rounded(self, gradient: tf.Tensor | tf.IndexedSlices, index: int) -> tf.Tensor:
        gradient = tf.cast(tf.convert_to_tensor(gradient), tf.float32)
        error = self._errors[index] if self.error_feedback else None
        wanted = gradient if error is None else gradient + error.value
        rounded = self.quantize(wanted, self._noise(tf.shape(gradient), index))
        # A gradient that overflowed passes, for a loss scale to see it, and spoils no error.
        is_finite = tf.reduce_all(tf.math.is_finite(wanted))
        if error is not None:
            self.assign(error, tf.where(is_finite, wanted - rounded, error.value))
        return tf.where(is_finite, rounded, gradient)

    def quantize(self, gradient: tf.Tensor, noise: tf.Tensor | None = None) -> tf.Tensor:
        """One gradient on its grid.

        Args:
            gradient: float32 of any shape.
            noise: In [0, 1), of the same shape; `None` rounds to nearest.
        """
        axes = None
        if self.per_channel and gradient.shape.rank >= 2:
            axes = list(range(gradient.shape.rank - 1))
        if self.method == "qsgd":
            size = tf.norm(gradient, axis=axes, keepdims=True)
        else:
            size = tf.reduce_max(tf.abs(gradient), axes, keepdims=True)
        if self.method == "dorefa":
            rounded = dorefa(gradient, size, self.num_bits, noise)
            return tf.where(size > 0, rounded, gradient)
        return uniform(gradient, size, 2 ** (self.num_bits - 1) - 1, noise)

    def _noise(self, shape: tf.Tensor, index: int) -> tf.Tensor | None:
        if self.rounding == "nearest":
            return None
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        step = tf.cast(self.iterations, tf.int32)
        stream = tf.cast(replica, tf.int32) * len(self._positions) + index
        seed = tf.random.experimental.stateless_fold_in([self.seed, step], stream)
        return tf.random.stateless_uniform(shape, seed)

    # --- the inner optimizer's ---------------------------------------------------------------

    @property
    def learning_rate(self) -> Any:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> keras.Variable:
        return self.inner_optimizer.iterations

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        self.inner_optimizer.finalize_variable_values(var_list)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def get_config(self) -> dict[str, Any]:
        return {
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "num_bits": self.num_bits,
            "rounding": self.rounding,
            "error_feedback": self.error_feedback,
            "per_channel": self.per_channel,
            "method": self.method,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> QuantizedGradients:
        config = dict(config)
        inner = keras.saving.deserialize_keras_object(
            config.pop("optimizer"), custom_objects=custom_objects
        )
        return cls(inner, **config)
