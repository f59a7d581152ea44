"""`Regularization`: strengths that a schedule moves, on any model, without rebuilding it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras

from tfcompress.model.replicas import check_replicas
from tfcompress.pruning.regularization import attached as regularization


class Regularization(keras.callbacks.Callback):
    """Regularizes the kernels (and batch-norm scales) of any model during `model.fit`.

    The loss gains `factor · (l1 Σ|w| + l2 Σw² + group_lasso Σ_c sqrt(n)||w_c||₂)` over the chosen
    kernels, and `factor · batch_norm_scale Σ|γ|` over batch-norm scales (network slimming, Liu
    et al. 2017, https://arxiv.org/abs/1708.06519). `l1` and `l2` together are the elastic net.

    With `proximal=True` nothing enters the loss. Instead each optimizer step is followed by the
    proximal step of the same penalty, with thresholds multiplied by the learning rate: for L1 the
    soft threshold `w - α sign(w)`, clipped at 0, with `α = factor · l1 · learning_rate`. Weights
    then become exactly zero, and nonzero again where a step is larger than the threshold.

    What the variables had before (regularizers, constraints) stays in force, and is all that is
    left when training ends.

    Args:
        l1: Strength of the L1 penalty, >= 0.
        l2: Strength of the L2 penalty, >= 0.
        group_lasso: Strength of the group lasso over output channels, >= 0.
        batch_norm_scale: Strength of the L1 penalty on batch-norm scales, >= 0.
        schedule: `step -> factor`, such as one of `keras.optimizers.schedules`; by default 1.
        layers: Names, regular expressions, classes, names of classes, predicates, or a list of
            them.
        proximal: Whether to take proximal steps in place of a penalty in the loss.

    Raises:
        ValueError: If a strength is negative or none is given; before training, if no layer is
            matched.
    """

    def __init__(
        self,
        l1: float = 0.0,
        l2: float = 0.0,
        group_lasso: float = 0.0,
        batch_norm_scale: float = 0.0,
        *,
        schedule: Callable[[int], Any] | None = None,
        layers: Any = None,
        proximal: bool = False,
    ):
        super().__init__()
        self.strengths = {
            "l1": l1,
            "l2": l2,
            "group_lasso": group_lasso,
            "batch_norm_scale": batch_norm_scale,
        }
        wrong = {name: value for name, value in self.strengths.items() if not value >= 0}
        if wrong or not any(self.strengths.values()):
            raise ValueError(
                "Expected strengths >= 0, and at least one above 0. "
                f"Received: {wrong or self.strengths}"
            )
        self.schedule = schedule
        self.layers = layers
        self.proximal = proximal
        self.factor: keras.Variable | None = None
        self.pieces: list[Any] = []

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        check_replicas(model)
        if not model.built:
            raise ValueError(
                "Regularization needs a built model, because what is traced in the first step "
                "cannot be changed later. Call the model on a batch, or `build` it, before `fit`."
            )
        if self.proximal and not hasattr(model.optimizer, "learning_rate"):
            raise ValueError(
                "Proximal steps go by the learning rate of one optimizer. Expected an optimizer "
                f"with a `learning_rate`. Received: {model.optimizer!r}; use proximal=False."
            )
        self.pieces = []
        targets = regularization.find_targets(model, layers=self.layers, **self.strengths)
        strategy = getattr(model, "distribute_strategy", None)
        with contextlib.nullcontext() if strategy is None else strategy.scope():
            self.factor = keras.Variable(
                1.0, trainable=False, aggregation="only_first_replica", name="strength"
            )
        self.pieces = [
            regularization.attach(target, self.factor, self.proximal, model.optimizer)
            for target in targets
        ]
        self._retrace()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 0 and not all(map(regularization.attached, self.pieces)):
            raise ValueError(
                "Two Regularization callbacks act on the same variable. Give all its strengths to "
                "one of them, or each its own `layers`."
            )
        if self.schedule is not None:
            self.update(int(self.model.optimizer.iterations.numpy()))

    def on_train_end(self, logs: Any = None) -> None:
        self.finish()

    def finish(self) -> None:
        """Takes penalties and proximal steps off."""
        for piece in self.pieces:
            regularization.detach_all(piece.target.variable)
        self._retrace()

    def update(self, step: int) -> None:
        """Sets the factor to that of `step`.

        A custom loop calls `set_model` before its step is traced, this before every step, and
        `finish` after the last.
        """
        if self.schedule is None or self.factor is None:
            return
        factor = float(self.schedule(step))
        if not factor >= 0:
            raise ValueError(
                f"`schedule` must return a factor >= 0. Received: {factor} at step {step}"
            )
        self.factor.assign(factor)

    def _retrace(self) -> None:
        # Both capture the regularizers when they are traced.
        self.model.train_function = None
        self.model.test_function = None
