"""The rounded kernels of a model, as callbacks read them between two steps."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tfcompress.model.compressed import compressed_variables, is_compressed
from tfcompress.model.kernels import iterate_layers
from tfcompress.model.transforms import FAKE_QUANT, WeightCall, WeightTransform
from tfcompress.quantization.fake_quant.held_weights import FREE
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights


@dataclasses.dataclass(frozen=True)
class RoundedKernelOf:
    """A kernel with the transforms that it passes.

    Attributes:
        name: `"layer/variable"`, for messages.
        variable: The latent kernel, which the optimizer trains.
        before: The transforms before its rounding, such as a mask of pruned weights.
        rounding: The transform that rounds it.
    """

    name: str
    variable: keras.Variable
    before: tuple[WeightTransform, ...]
    rounding: FakeQuantizeWeights

    def rounded(self, latent: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """`(codes, values, scale)`, see `FakeQuantizeWeights.rounded`."""
        value = tf.cast(self.variable.value if latent is None else latent, tf.float32)
        for transform in self.before:
            value = transform.apply(value, WeightCall(training=False))
        return self.rounding.rounded(value)

    def restore(self) -> None:
        """Puts the latent values of held weights back on their codes.

        No gradient moves them, but weight decay and momentum do, and a scale that is computed from
        the kernel would follow.
        """
        found = self.rounding.held
        if found is None or self.before or not self.rounding.scheme.quantizer.keeps_levels:
            return
        held = found.codes
        _, _, scale = self.rounded()
        factor = self.rounding.fold_factor(0)
        values = tf.cast(held.value, tf.float32) * scale
        values = values if factor is None else values / factor
        latent = self.variable.value
        is_held = (held.value != FREE) & (latent != 0)
        self.variable.assign(tf.where(is_held, tf.cast(values, latent.dtype), latent))


def rounded_kernels(model: keras.Model, what: str) -> list[RoundedKernelOf]:
    """Every kernel that is rounded, but for those whose channels share values on purpose.

    Args:
        model: The model, or one that trains it (a `Distiller`).
        what: Who asks, for the message.

    Raises:
        ValueError: None is.
    """
    found = []
    for layer in iterate_layers(model):
        if not is_compressed(layer):
            continue
        variables = compressed_variables(layer)
        for name, rounding in layer.transformed.of_type(FakeQuantizeWeights).items():
            chain = layer.transformed.chains[name]
            if any(transform.one_scale for transform in chain):
                continue
            before = tuple(t for t in chain if t.order < FAKE_QUANT)
            path = f"{layer.name}/{name}"
            found.append(RoundedKernelOf(path, variables[name], before, rounding))
    if not found:
        raise ValueError(
            f"Expected a model with rounded kernels for {what}. Received: {model.name!r}. "
            "Train what tfcompress.quantize(model) returns."
        )
    return found


def strategy_scope(model: keras.Model) -> Any:
    """The scope in which a model's variables are made."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def trace_anew(model: keras.Model) -> None:
    """Forgets what was traced: functions capture variables and regularizers."""
    model.train_function = None
    model.test_function = None
    model.predict_function = None
