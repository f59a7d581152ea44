"""The constraints that hold zeros: Keras applies them in the graph after every optimizer step.

A constraint is captured when the training step is traced, so after
attaching or detaching one `model.train_function` must be set to `None`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class ChainedConstraint(keras.constraints.Constraint):
    """Base of our constraints: applied after the constraint that the variable already had.

    Attributes:
        inner: The next constraint inwards, applied first; `None` at the end of the chain.
    """

    inner: Callable[[Any], Any] | None = None

    def __call__(self, w):
        if self.inner is not None:
            w = self.inner(w)
        return self.apply(tf.convert_to_tensor(w))

    def apply(self, w: tf.Tensor) -> tf.Tensor:
        """Returns the constrained value of `w`."""
        raise NotImplementedError(
            f"Expected a constraint that implements apply(w). Received: {type(self).__name__}, "
            "which does not."
        )


class MaskConstraint(ChainedConstraint):
    """Sets the weights outside the mask to exact zeros.

    Args:
        mask: Boolean variable of the kernel's shape, True where a weight stays.
    """

    def __init__(self, mask: keras.Variable):
        self.mask = mask

    def masked(self, w: tf.Tensor) -> tf.Tensor:
        """Returns `w` with exact zeros outside the mask."""
        # A product would keep NaN and infinity alive, and turn negative weights into -0.0.
        return tf.where(tf.convert_to_tensor(self.mask), w, tf.zeros((), w.dtype))

    def apply(self, w: tf.Tensor) -> tf.Tensor:
        return self.masked(w)


class LatentConstraint(MaskConstraint):
    """A mask whose removed weights are remembered, so that they can come back.

    The kernel holds `mask ⊙ latent`. After each optimizer step the displacement
    `Δ = w_new - mask ⊙ latent` moves the latent weights: all of them if `train_removed`, those
    inside the mask otherwise.

    Args:
        mask: Boolean variable, True where a weight stays.
        latent: Variable with the value of every weight, removed or not.
        train_removed: Whether removed weights go on learning (dynamic network surgery).
        scores: Variable to which `criterion(kernel=latent, gradient=-Δ)` is added, or `None`.
        criterion: The criterion that is accumulated.
    """

    def __init__(
        self,
        mask: keras.Variable,
        latent: keras.Variable,
        train_removed: bool,
        scores: keras.Variable | None = None,
        criterion: Callable[..., Any] | None = None,
    ):
        super().__init__(mask)
        self.latent = latent
        self.train_removed = train_removed
        self.scores = scores
        self.criterion = criterion

    def apply(self, w: tf.Tensor) -> tf.Tensor:
        latent = tf.convert_to_tensor(self.latent)
        step = w - self.masked(latent)
        # One step that is not finite would stay in what is remembered for good.
        step = tf.where(tf.math.is_finite(step), step, tf.zeros((), step.dtype))
        if self.scores is not None and self.criterion is not None:
            self.scores.assign_add(self.criterion(kernel=latent, gradient=-step))
        removed = latent + step if self.train_removed else latent
        self.latent.assign(tf.where(tf.convert_to_tensor(self.mask), w, removed))
        return self.masked(w)


def attach(variable: keras.Variable, constraint: ChainedConstraint) -> None:
    """Puts `constraint` on the variable, around the constraint that it already has."""
    constraint.inner = variable.constraint
    variable.constraint = constraint


def detach(variable: keras.Variable, constraint: ChainedConstraint) -> None:
    """Takes `constraint` off the variable and leaves the others as they are."""
    if variable.constraint is constraint:
        variable.constraint = constraint.inner
        return
    current = variable.constraint
    while isinstance(current, ChainedConstraint):
        if current.inner is constraint:
            current.inner = constraint.inner
            return
        current = current.inner


def attached(variable: keras.Variable) -> list[ChainedConstraint]:
    """Returns our constraints on the variable, the outermost first."""
    found = []
    current = variable.constraint
    while isinstance(current, ChainedConstraint):
        found.append(current)
        current = current.inner
    return found


def detach_all(variable: keras.Variable, kind: type[ChainedConstraint]) -> None:
    """Takes every constraint of exactly this class off: what an interrupted `fit` has left."""
    for constraint in attached(variable):
        if type(constraint) is kind:
            detach(variable, constraint)
