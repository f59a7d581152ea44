"""Regularizers and proximal steps on the variables of a model that is already built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfcompress.model.kernels import KernelSpec, iterate_layers
from tfcompress.model.paths import full_paths
from tfcompress.pruning.masks import constraints as masks
from tfcompress.pruning.regularization import penalties
from tfcompress.pruning.selection import Selection, select_kernels, selectable_kernels


@dataclasses.dataclass(frozen=True)
class Target:
    """A variable with its penalties.

    Attributes:
        variable: The variable.
        spec: Its axes; `None` for a batch-norm scale.
        strengths: Kind of penalty (`"l1"`, `"l2"`, `"group_lasso"`) → strength, > 0.
    """

    variable: keras.Variable
    spec: KernelSpec | None
    strengths: dict[str, float]


class VariablePenalty:
    """A regularizer whose strength is a variable: `factor · Σ strength · R(w)`, on top of `inner`.

    Args:
        target: The variable and its strengths.
        factor: Variable that multiplies all strengths.
        inner: The regularizer that the variable already had, or `None`.
    """

    def __init__(self, target: Target, factor: keras.Variable, inner: Callable | None):
        self.target = target
        self.factor = factor
        self.inner = inner

    def __call__(self, w: Any) -> tf.Tensor:
        value = tf.convert_to_tensor(w)
        loss = tf.zeros((), value.dtype)
        for kind, strength in self.target.strengths.items():
            loss += strength * self._penalty(kind, value)
        loss *= tf.cast(tf.convert_to_tensor(self.factor), value.dtype)
        return loss if self.inner is None else loss + self.inner(w)

    def _penalty(self, kind: str, w: tf.Tensor) -> tf.Tensor:
        if kind == "group_lasso" and self.target.spec is not None:
            return penalties.group_lasso_penalty(w, self.target.spec)
        return penalties.l1_penalty(w) if kind == "l1" else penalties.l2_penalty(w)


class ProximalConstraint(masks.ChainedConstraint):
    """The proximal step after the optimizer's: thresholds are `factor · strength · learning rate`.

    Args:
        target: The variable and its strengths.
        factor: Variable that multiplies all strengths.
        optimizer: The optimizer, whose learning rate and gradient accumulation are read.
    """

    def __init__(self, target: Target, factor: keras.Variable, optimizer: keras.Optimizer):
        self.target = target
        self.factor = factor
        self.optimizer = optimizer

    def apply(self, w: tf.Tensor) -> tf.Tensor:
        step = tf.cast(tf.convert_to_tensor(self.factor), w.dtype)
        step *= tf.cast(self.optimizer.learning_rate, w.dtype)
        accumulation = self.optimizer.gradient_accumulation_steps
        if accumulation:
            # Constraints run at every micro-batch, weights move at every n-th. `iterations` counts
            # the moves; the variable of that name counts the batches.
            batch = next(v for v in self.optimizer.variables if v.name == "iteration")
            step *= tf.cast((tf.convert_to_tensor(batch) + 1) % accumulation == 0, w.dtype)
        strengths = self.target.strengths
        if "l1" in strengths:
            w = penalties.soft_threshold(w, strengths["l1"] * step)
        spec = self.target.spec
        if "group_lasso" in strengths and spec is not None:
            w = penalties.group_soft_threshold(w, strengths["group_lasso"] * step, spec)
        if "l2" in strengths:
            w = penalties.shrink(w, strengths["l2"] * step)
        return w


def find_targets(
    model: keras.Model,
    l1: float,
    l2: float,
    group_lasso: float,
    batch_norm_scale: float,
    layers: Any,
) -> tuple[Target, ...]:
    """Finds the kernels and batch-norm scales that are regularized.

    Raises:
        ValueError: If nothing is matched, or a key of `layers` matches nothing.
    """
    targets = []
    strengths = {"l1": l1, "l2": l2, "group_lasso": group_lasso}
    strengths = {kind: value for kind, value in strengths.items() if value}
    selection = Selection(layers)
    norms = _batch_norms(model) if batch_norm_scale else []
    selection.check([*(selectable_kernels(model) if strengths else ()), *norms])
    if strengths:
        kernels, _ = select_kernels(model, selection)
        targets += [Target(k.variable, k.spec, strengths) for k in kernels]
    if batch_norm_scale:
        scales = [norm.gamma for norm, path in norms if (norm, path) in selection]
        if not scales:
            raise ValueError(
                "`batch_norm_scale` regularizes the scales (gamma) of batch norms, and "
                f"no trainable one was matched. Received: layers={layers!r}"
            )
        targets += [Target(scale, None, {"l1": batch_norm_scale}) for scale in scales]
    return tuple(targets)


def attach(
    target: Target, factor: keras.Variable, proximal: bool, optimizer: keras.Optimizer
) -> VariablePenalty | ProximalConstraint:
    """Puts the penalty or the proximal step on the variable, and returns it."""
    detach_all(target.variable)
    if proximal:
        constraint = ProximalConstraint(target, factor, _inner_optimizer(optimizer))
        masks.attach(target.variable, constraint)
        return constraint
    penalty = VariablePenalty(target, factor, target.variable.regularizer)
    target.variable.regularizer = penalty
    return penalty


def attached(piece: VariablePenalty | ProximalConstraint) -> bool:
    """Whether `attach`'s result is still in force."""
    variable = piece.target.variable
    return variable.regularizer is piece or piece in masks.attached(variable)


def detach_all(variable: keras.Variable) -> None:
    """Takes off what `attach` put on, also what an interrupted `fit` left behind."""
    masks.detach_all(variable, ProximalConstraint)
    while isinstance(variable.regularizer, VariablePenalty):
        variable.regularizer = variable.regularizer.inner


def _inner_optimizer(optimizer: keras.Optimizer) -> keras.Optimizer:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _batch_norms(model: keras.Model) -> list[tuple[keras.layers.BatchNormalization, str]]:
    """`(layer, path)` of every batch norm whose scale is trained."""
    # A distiller's teacher is frozen or not trained; its scales must not enter the loss.
    root = getattr(model, "student", model)
    paths = full_paths(root)
    return [
        (layer, paths[id(layer)])
        for layer in iterate_layers(root)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.scale
        and layer.gamma.trainable
    ]
