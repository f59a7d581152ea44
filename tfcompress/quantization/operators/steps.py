"""Operators that move the steps of a sequence, for layers that were taken apart into steps."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register


class StepPart(layers.Layer):
    """Mixin of layers that only move values and give a mask to nobody."""

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None


@keras.saving.register_keras_serializable(package="tfcompress")
class Steps(StepPart):
    """The steps (batch, features) of a sequence (batch, steps, features), as a list."""

    channels_like = layers.Identity
    #: Calls that repeat for each of its outputs run as a loop (see `tfcompress.model.loops`).
    gives_steps = True

    def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        return tf.unstack(inputs, axis=1)

    def compute_output_shape(self, input_shape: Any) -> list[tuple[int | None, ...]]:
        return [(input_shape[0], *input_shape[2:])] * input_shape[1]

    def stripped(self) -> list:
        return [lambda x: keras.ops.unstack(x, axis=1)]


@keras.saving.register_keras_serializable(package="tfcompress")
class Chunks(StepPart):
    """Equal parts of the last axis, as a list."""

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = int(count)

    def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        return tf.split(inputs, self.count, axis=-1)

    def compute_output_shape(self, input_shape: Any) -> list[tuple[int | None, ...]]:
        return [(*input_shape[:-1], input_shape[-1] // self.count)] * self.count

    def stripped(self) -> list:
        return [lambda x: keras.ops.split(x, self.count, axis=-1)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "count": self.count}


@keras.saving.register_keras_serializable(package="tfcompress")
class StackedSteps(StepPart):
    """A sequence of its steps, each (batch, features)."""

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        return tf.stack(inputs, axis=1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        first = tuple(input_shape[0])
        return (first[0], len(input_shape), *first[1:])

    def stripped(self) -> list:
        return [lambda steps: keras.ops.stack(steps, axis=1)]


@keras.saving.register_keras_serializable(package="tfcompress")
class StateDropout(StepPart):
    """Drops the same units of a state at every step of a sequence, in training.

    Args:
        rate: Share of the units.
        seed: Of the random numbers.
    """

    channels_like = layers.Identity

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.seed = float(rate), seed

    def build(self, input_shape: Any) -> None:
        self.sequence = self.add_weight(
            name="sequence", shape=(), initializer="zeros", dtype="int32", trainable=False
        )
        self.built = True

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, first: bool = False
    ) -> tf.Tensor:
        if not training:
            return inputs
        if first:
            self.sequence.assign_add(1)
        seed = tf.stack([self.sequence.value, self.seed or 0])
        drawn = tf.random.stateless_uniform(tf.shape(inputs), seed)
        kept = tf.cast(drawn >= self.rate, inputs.dtype)
        return inputs * kept / (1.0 - self.rate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def stripped(self) -> list:
        return []

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package="tfcompress")
class StepsAsSamples(StepPart):
    """The steps of all sequences as one batch: (batch, steps, …) → (batch · steps, …)."""

    channels_like = layers.Identity

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.reshape(inputs, (-1, *inputs.shape[2:]))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        batch, steps, *rest = input_shape
        return (None if batch is None else batch * steps, *rest)

    def stripped(self) -> list:
        return [lambda x: keras.ops.reshape(x, (-1, *x.shape[2:]))]


@keras.saving.register_keras_serializable(package="tfcompress")
class SamplesAsSteps(StepPart):
    """A batch as the steps of sequences: (batch · steps, …) → (batch, steps, …).

    Args:
        count: The steps of a sequence.
    """

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = int(count)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.reshape(inputs, (-1, self.count, *inputs.shape[1:]))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        batch, *rest = input_shape
        return (None if batch is None else batch // self.count, self.count, *rest)

    def stripped(self) -> list:
        return [lambda x: keras.ops.reshape(x, (-1, self.count, *x.shape[1:]))]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "count": self.count}


def _lower_steps(call: LoweredCall, x: tf.Tensor) -> list[tf.Tensor]:
    """Slices of a matrix, which XNNPACK takes."""
    size = int(np.prod(x.shape[2:]))
    rows = tf.reshape(x, (x.shape[1], size))
    shape = (1, *x.shape[2:])
    steps = [tf.slice(rows, [t, 0], [1, size]) for t in range(x.shape[1])]
    return [step if len(shape) == 2 else tf.reshape(step, shape) for step in steps]


def _lower_chunks(call: LoweredCall, x: tf.Tensor) -> list[tf.Tensor]:
    """Slices."""
    size = x.shape[-1] // call.operation.count
    rank = len(x.shape)
    begins = [[0] * (rank - 1) + [i * size] for i in range(call.operation.count)]
    return [tf.slice(x, begin, [*x.shape[:-1], size]) for begin in begins]


def _lower_sequence(call: LoweredCall, steps: list[tf.Tensor]) -> tf.Tensor:
    """One concatenation."""
    shape = steps[0].shape
    return tf.reshape(tf.concat(steps, 0), (1, len(steps), *shape[1:]))


register(Steps, spec=OperatorSpec(role=Role.MOVE, lower=_lower_steps))
register(Chunks, spec=OperatorSpec(role=Role.MOVE, lower=_lower_chunks))
register(StackedSteps, spec=OperatorSpec(role=Role.JOIN, lower=_lower_sequence))
register(StateDropout, StepsAsSamples, SamplesAsSteps, spec=OperatorSpec(role=Role.MOVE))
