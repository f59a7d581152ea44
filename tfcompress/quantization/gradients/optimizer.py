"""An optimizer that is given quantized gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.keras_private import leave_out_reduction
from tfcompress.model.workers import several_workers
from tfcompress.quantization.gradients.exchange import sum_over_replicas
from tfcompress.quantization.gradients.rounding import Grid

_METHODS = ("uniform", "qsgd", "dorefa")
_ROUNDINGS = ("stochastic", "nearest")


@keras.saving.register_keras_serializable(package="tfcompress")
class QuantizedGradients(keras.optimizers.Optimizer):
    """Quantizes every gradient before it reaches an optimizer, and what workers send each other.

    The grid of b bits has 2ᵇ⁻¹ − 1 levels on either side of 0:

    - `"uniform"`: multiples of max|g| / (2ᵇ⁻¹ − 1);
    - `"qsgd"`: multiples of ‖g‖₂ / (2ᵇ⁻¹ − 1) (Alistarh et al. 2017, "QSGD", eq. 4);
    - `"dorefa"`: 2ᵇ levels without 0 (Zhou et al. 2016, "DoReFa-Net", eq. 12).

    With stochastic rounding the mean of what is applied is the gradient. With error feedback
    (Seide et al. 2014; Karimireddy et al. 2019) what rounding takes away is added to the next
    gradient, so that nothing is lost over many steps.

    Under `tf.distribute.MultiWorkerMirroredStrategy` each worker quantizes its own gradients and
    sends the codes, packed, with their scales, to all others; each sums what all have sent, and the
    inner optimizer gets the sum. That is 32 / b times fewer bytes than floats on two workers, and
    more from about 64 / b workers on, because every worker receives the codes of all:
    `tfc.distribute.gradient_traffic` tells both. On one device, and under `MirroredStrategy`, whose
    replicas sum floats, nothing is sent in fewer bits: it studies what low-precision gradients do
    to training.

    Clipping, weight decay, averaging and accumulation are the inner optimizer's, behind the
    quantization, and on several workers behind the sum. The random numbers follow from `seed` and
    the step, so a resumed training draws the same. Each replica keeps its own errors: a saved model
    has the first replica's, `callbacks.BackupAndRestore` those of all.

    Args:
        optimizer: Any Keras optimizer, but for a `LossScaleOptimizer`, which goes around this one.
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
        ValueError: An argument outside of its range, or a `LossScaleOptimizer` inside.

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
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            # Its gradients are scaled, by a number that changes: errors of one scale would be added
            # to gradients of another.
            raise ValueError(
                "Expected the loss scale outside: LossScaleOptimizer(QuantizedGradients(optimizer))"
                f". Received: a {type(optimizer).__name__} inside."
            )
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
        self._warned = False

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
        given = list(zip(grads, variables, strict=True))
        indices = [self._positions[id(v)] for gradient, v in given if gradient is not None]
        dense = [_dense(gradient, v) for gradient, v in given if gradient is not None]
        rounded = iter(self._rounded(dense, indices) if dense else ())
        result = [None if gradient is None else next(rounded) for gradient, _ in given]
        return self.inner_optimizer.apply(result, trainable_variables)

    @property
    def replica_variables(self) -> list[keras.Variable]:
        """The variables that are not the same on all replicas: the errors."""
        return list(self._errors)

    def _rounded(self, gradients: Sequence[tf.Tensor], indices: Sequence[int]) -> list[tf.Tensor]:
        """What the inner optimizer gets in place of these gradients; keeps the errors."""
        errors = [self._errors[i] for i in indices] if self.error_feedback else []
        wanted = list(gradients)
        if errors:
            wanted = [g + e.value for g, e in zip(gradients, errors, strict=True)]
        grid = self._grid
        sizes = [grid.size(w, self._axes(w)) for w in wanted]
        noise = [self._noise(tf.shape(w), i) for w, i in zip(wanted, indices, strict=True)]
        codes = [grid.encode(*each) for each in zip(wanted, sizes, noise, strict=True)]
        own = [grid.decode(c, s) for c, s in zip(codes, sizes, strict=True)]
        finite = [tf.reduce_all(tf.math.is_finite(w)) for w in wanted]
        if self._sends():
            leave_out_reduction(self.inner_optimizer)
            # A largest value may hide a NaN.
            sizes = [tf.where(is_good, s, np.nan) for is_good, s in zip(finite, sizes, strict=True)]
            rounded, is_finite = sum_over_replicas(codes, sizes, grid)
        else:
            is_finite = tf.reduce_all(tf.stack(finite))
            # A gradient that overflowed passes, for a loss scale to see it.
            each = zip(finite, own, gradients, strict=True)
            rounded = [tf.where(is_good, o, g) for is_good, o, g in each]
        # A loss scale leaves out a step with one, of which no error may tell.
        if errors:
            for error, w, o in zip(errors, wanted, own, strict=True):
                self.assign(error, tf.where(is_finite, w - o, error.value))
        return rounded

    def _sends(self) -> bool:
        """Whether replicas exchange codes: those of several workers."""
        strategy = tf.distribute.get_strategy()
        if several_workers(strategy):
            return True
        if strategy.num_replicas_in_sync > 1 and not self._warned:
            self._warned = True
            warnings.warn(
                f"QuantizedGradients save nothing under {type(strategy).__name__}: its "
                f"{strategy.num_replicas_in_sync} replicas sum floats. Codes are sent between the "
                "workers of a MultiWorkerMirroredStrategy.",
                UserWarning,
                stacklevel=2,
            )
        return False

    def quantize(self, gradient: tf.Tensor, noise: tf.Tensor | None = None) -> tf.Tensor:
        """One gradient on its grid.

        Args:
            gradient: float32 of any shape.
            noise: In [0, 1), of the same shape; `None` rounds to nearest.
        """
        size = self._grid.size(gradient, self._axes(gradient))
        return self._grid.decode(self._grid.encode(gradient, size, noise), size)

    def num_scales(self, shape: Sequence[int]) -> int:
        """How many scales a gradient of this shape has."""
        return int(shape[-1]) if self.per_channel and len(shape) >= 2 else 1

    @property
    def _grid(self) -> Grid:
        return Grid(self.method, self.num_bits)

    def _axes(self, gradient: tf.Tensor) -> list[int] | None:
        """The axes that share a scale; `None` for all."""
        rank = gradient.shape.rank
        return list(range(rank - 1)) if self.per_channel and rank >= 2 else None

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


def _dense(gradient: tf.Tensor | tf.IndexedSlices, variable: keras.Variable) -> tf.Tensor:
    """A gradient as float32 of its variable's shape."""
    return tf.reshape(tf.cast(tf.convert_to_tensor(gradient), tf.float32), variable.shape)
