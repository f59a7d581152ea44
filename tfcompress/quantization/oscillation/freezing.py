"""Callbacks that hold weights at their codes in training: a growing share, or those that swing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.quantization.callbacks import check_reestimation
from tfcompress.quantization.callbacks import reestimate_batch_norm as reestimate
from tfcompress.quantization.fake_quant.held_weights import FREE, HeldWeights
from tfcompress.quantization.oscillation.kernels import (
    RoundedKernelOf,
    rounded_kernels,
    strategy_scope,
    trace_anew,
)


class HoldingCallback(keras.callbacks.Callback):
    """Base of callbacks that hold weights at codes. Which are held is saved with the model.

    Args:
        reestimate_batch_norm: Data for `tfc.reestimate_batch_norm` at the end of `fit`.
    """

    def __init__(self, reestimate_batch_norm: Any = None):
        super().__init__()
        self.reestimate_batch_norm = reestimate_batch_norm
        self.kernels: list[RoundedKernelOf] = []
        self.held: list[HeldWeights] = []

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.kernels = rounded_kernels(model, type(self).__name__)
        with strategy_scope(model):
            self.held = [kernel.rounding.allow_holding() for kernel in self.kernels]
        trace_anew(model)
        self._restore = tf.function(self._restore_all)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.reestimate_batch_norm is not None:
            check_reestimation(self.model, self.reestimate_batch_norm)

    @property
    def held_share(self) -> float:
        """The share of weights that are held at a code."""
        held = [np.asarray(each.codes) != FREE for each in self.held]
        return sum(map(np.count_nonzero, held)) / max(sum(map(np.size, held)), 1)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        for held in self.held:
            held.rounds_free.assign(1.0)
        if self.reestimate_batch_norm is not None:
            reestimate(self.model, self.reestimate_batch_norm)

    def _restore_all(self) -> None:
        for kernel in self.kernels:
            kernel.restore()


class IncrementalFreezing(HoldingCallback):
    """Holds a growing share of every kernel at its codes while the rest trains in float.

    Incremental network quantization (Zhou et al. 2017, "INQ"): at each step of `shares` the weights
    with the largest |w| are rounded for good, and the others make up for it. For the powers of two
    of the paper quantize with `PowerOfTwoWeights(fixed_scale=True)`; other grids whose levels stay
    the same whole numbers work too. Until the share is 1 a training step computes with the other
    weights unrounded; inference always rounds all.

    Args:
        shares: Step of the optimizer → share of each kernel that is held from then on, ascending in
            both; the last share is 1. The paper's shares are 0.5, 0.75, 0.875, 1.
        reestimate_batch_norm: Data for `tfc.reestimate_batch_norm` at the end of `fit`.

    Raises:
        ValueError: Steps or shares that do not ascend, or a last share that is not 1; at the start
            of `fit`, a model without rounded kernels, or a quantizer whose levels move.

    Example:
        >>> callback = tfc.callbacks.IncrementalFreezing({0: 0.5, 400: 0.75, 800: 0.875, 1200: 1.0})
    """

    def __init__(self, shares: Mapping[int, float], *, reestimate_batch_norm: Any = None):
        super().__init__(reestimate_batch_norm)
        if not _ascends(shares):
            raise ValueError(
                "Expected `shares` as {step: share}, ascending in both: whole numbers from 0 on, "
                f"and shares up to 1. Received: {shares!r}."
            )
        self.shares = {int(step): float(share) for step, share in shares.items()}

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._applied: float | None = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.update(int(self.model.optimizer.iterations.numpy()))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._restore()

    def update(self, step: int) -> None:
        """Holds what the schedule says for `step`."""
        share = max((v for s, v in self.shares.items() if s <= step), default=0.0)
        if share == self._applied:
            return
        self._applied = share
        for kernel, held in zip(self.kernels, self.held, strict=True):
            held.rounds_free.assign(float(share == 1))
            if share:
                _hold_largest(kernel, held, share)


def _ascends(shares: Any) -> bool:
    """Whether steps and shares of `IncrementalFreezing` are what they must be."""
    if not isinstance(shares, Mapping) or not shares:
        return False
    steps, values = list(shares), list(shares.values())
    are_steps = all(isinstance(step, int | np.integer) for step in steps)
    if not are_steps or not all(isinstance(v, int | float | np.number) for v in values):
        return False
    rises = all(np.diff(steps) > 0) and all(np.diff([0.0, *map(float, values)]) > 0)
    return bool(rises and steps[0] >= 0 and values[-1] == 1)


def _hold_largest(kernel: RoundedKernelOf, variables: HeldWeights, share: float) -> None:
    """Holds the weights with the largest |w| until `share` of the kernel is held."""
    codes, values, _ = (np.asarray(part) for part in kernel.rounded())
    held = np.asarray(variables.codes).copy()
    free = np.flatnonzero(held == FREE)
    missing = math.ceil(share * held.size) - (held.size - len(free))
    if missing <= 0:
        return
    order = np.argsort(-np.abs(values.ravel()[free]), kind="stable")
    chosen = free[order[:missing]]
    held.ravel()[chosen] = codes.ravel()[chosen].astype(np.int8)
    variables.codes.assign(held)


class IterativeFreezing(HoldingCallback):
    """Holds weights that keep swinging between two codes, at the one where they are more often.

    Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", algorithm 1. A
    weight swings when its code changes in the direction opposite to its last change. f, the moving
    average of that, is compared with a threshold that falls by a cosine; a weight above it is held
    for good at the code that is nearest to the moving average of its codes. It works on any grid
    whose levels stay the same whole numbers, and looks after every batch that Keras reports: with
    `steps_per_execution` it misses the steps between.

    Args:
        threshold: The threshold at the end, in swings per step; 0.01 in most of the paper's runs.
        initial_threshold: The threshold at `begin_step`, at least `threshold`.
        momentum: Weight of the newest step in the moving averages.
        begin_step: From this step of the optimizer on weights are held.
        end_step: When the threshold has arrived; `None`: it is `threshold` from the beginning.
        reestimate_batch_norm: Data for `tfc.reestimate_batch_norm` at the end of `fit`, which the
            paper recommends in any case.

    Raises:
        ValueError: An argument outside of its range; at the start of `fit`, a model without rounded
            kernels, or a quantizer whose levels move.

    Attributes:
        held_share: The share of weights that are held.
    """

    def __init__(
        self,
        threshold: float = 0.01,
        *,
        initial_threshold: float = 0.04,
        momentum: float = 0.01,
        begin_step: int = 0,
        end_step: int | None = None,
        reestimate_batch_norm: Any = None,
    ):
        super().__init__(reestimate_batch_norm)
        if not 0 < threshold <= initial_threshold or not 0 < momentum <= 1:
            raise ValueError(
                "Expected 0 < threshold ≤ initial_threshold and 0 < momentum ≤ 1. Received: "
                f"{threshold=}, {initial_threshold=}, {momentum=}."
            )
        if begin_step < 0 or (end_step is not None and end_step <= begin_step):
            raise ValueError(
                f"Expected 0 ≤ begin_step < end_step. Received: {begin_step=}, {end_step=}."
            )
        self.threshold, self.initial_threshold = threshold, initial_threshold
        self.momentum, self.begin_step, self.end_step = momentum, begin_step, end_step

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._histories = [_History(kernel) for kernel in self.kernels]
        self._step = tf.function(self._update)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.update(int(self.model.optimizer.iterations.numpy()))

    def update(self, step: int) -> None:
        """Looks at every kernel after the optimizer's step `step`, and holds what swings."""
        self._step(tf.constant(self.threshold_at(step), tf.float32))

    def threshold_at(self, step: int) -> float:
        """The threshold at a step; infinite before `begin_step`."""
        if step < self.begin_step:
            return math.inf
        if self.end_step is None:
            return self.threshold
        done = min((step - self.begin_step) / (self.end_step - self.begin_step), 1.0)
        more = (self.initial_threshold - self.threshold) * (1 + math.cos(math.pi * done)) / 2
        return self.threshold + more

    def _update(self, threshold: tf.Tensor) -> None:
        for kernel, held, history in zip(self.kernels, self.held, self._histories, strict=True):
            history.update(kernel, held.codes, threshold, self.momentum)
            kernel.restore()

    @property
    def swinging_share(self) -> float:
        """The share of weights whose swings per step are above `threshold`, held ones left out."""
        counts = [
            ((np.asarray(held.codes) == FREE) & (h.frequency.numpy() > self.threshold)).sum()
            for held, h in zip(self.held, self._histories, strict=True)
        ]
        return float(sum(counts)) / sum(np.size(h.codes) for h in self._histories)


class _History:
    """What is remembered of the codes of one kernel.

    Attributes:
        codes: After the last step.
        others: The code that each weight had before its last change; the same where it had none.
        frequency: Moving average of swings per step.
        mean: Moving average of the codes.
    """

    def __init__(self, kernel: RoundedKernelOf):
        codes, _, _ = kernel.rounded()
        self.codes = tf.Variable(tf.cast(codes, tf.int8), trainable=False)
        self.others = tf.Variable(tf.cast(codes, tf.int8), trainable=False)
        self.frequency = tf.Variable(tf.zeros_like(codes), trainable=False)
        self.mean = tf.Variable(codes, trainable=False)

    def update(
        self,
        kernel: RoundedKernelOf,
        held: keras.Variable,
        threshold: tf.Tensor,
        momentum: float,
    ) -> None:
        new, _, _ = kernel.rounded()
        old, others = tf.cast(self.codes, tf.float32), tf.cast(self.others, tf.float32)
        moved = new != old
        swings = moved & (tf.sign(new - old) == -tf.sign(old - others))
        frequency = self.frequency + momentum * (tf.cast(swings, tf.float32) - self.frequency)
        mean = self.mean + momentum * (new - self.mean)
        others = tf.where(moved, old, others)
        is_new = (held.value == FREE) & (frequency > threshold)
        # The two codes that it swings between need not be neighbouring whole numbers.
        nearest = tf.where(tf.abs(new - mean) <= tf.abs(others - mean), new, others)
        held.assign(tf.where(is_new, tf.cast(nearest, tf.int8), held.value))
        self.codes.assign(tf.cast(new, tf.int8))
        self.others.assign(tf.cast(others, tf.int8))
        self.frequency.assign(frequency)
        self.mean.assign(mean)
