"""The callback that refreshes assignments during `model.fit`."""

from __future__ import annotations

import keras
import numpy as np

from tfcompress.model.finite import LossWatch, warn_not_finite
from tfcompress.model.replicas import check_replicas
from tfcompress.sharing.clustering import clustered_kernels, latent_value
from tfcompress.sharing.codebook import Cluster


def refresh_assignments(model: keras.Model, *, reseed: bool = True) -> float:
    """Assigns every weight of every clustered kernel to its nearest centroid, by its latent value.

    Args:
        model: A model that `cluster` made, compressed further or not, or a `Distiller` of one.
        reseed: Move centroids that have lost all their weights to where the error is largest.

    Returns:
        The fraction of weights that changed their centroid.

    Raises:
        ValueError: No kernel is clustered.
    """
    found = _finite(model, _latent(model))
    _pin_zeros(found)
    changed = sum(transform.assign(value, reseed=reseed) for transform, value in found)
    return changed / max(sum(value.size for _, value in found), 1)


def _latent(model: keras.Model) -> list[tuple[Cluster, np.ndarray]]:
    """Every clustering with what it gets to see."""
    return [(transform, latent_value(kernel, transform)) for kernel, transform in _clustered(model)]


def _finite(
    model: keras.Model, found: list[tuple[Cluster, np.ndarray]]
) -> list[tuple[Cluster, np.ndarray]]:
    """Those whose weights and centroids are finite; warns of the others, which stay as they are."""
    kept, hit = [], []
    for (kernel, _), (transform, value) in zip(_clustered(model), found, strict=True):
        centroids = transform.leader().centroids.numpy()
        if np.isfinite(value).all() and np.isfinite(centroids).all():
            kept.append((transform, value))
        else:
            hit.append(kernel.name)
    if hit:
        optimizer = getattr(model, "optimizer", None)
        step = 0 if optimizer is None else int(optimizer.iterations.numpy())
        cause = f"Expected finite weights. Received: NaN or infinity in {', '.join(hit)}."
        warn_not_finite(step, cause, "Their codebooks and assignments")
    return kept


def _pin_zeros(found: list[tuple[Cluster, np.ndarray]]) -> set[int]:
    """Pins a centroid to zero in every codebook that needs one, before any weight is assigned:
    others of its kernels may have used that centroid. Returns the `id` of these codebooks."""
    needing = [transform for transform, value in found if transform.needs_zero(value)]
    for transform in needing:
        transform.pin_zero()
    return {id(transform.leader()) for transform in needing}


class Clustering(keras.callbacks.Callback):
    """Lets the assignments of a clustered model follow its weights, on a schedule.

    From `begin_step` to `end_step` every weight is read as the centroid that is nearest to its
    latent value at that step; before and after, the assignments stay and the centroids train. The
    step is `optimizer.iterations`. Zeros that pruning makes in the same `fit` are read as zeros at
    once, and get a centroid of their own at the next refresh, at the latest when training ends.
    When an epoch ends the assignments stand as its last step has left them, so that checkpoints,
    `EarlyStopping` and `BackupAndRestore` may be listed before it or after it. What is saved in the
    middle of an epoch holds those of the last refresh.

    Args:
        frequency: Steps from one refresh to the next, from 1 on: zeros get their centroid then, and
            centroids that have lost all their weights move to where the error is largest.
        begin_step: First step at which assignments may change.
        end_step: From this step on they stay; `None`: never. Leave the last part of the training
            to the centroids.
        reseed: Whether centroids without weights move.

    Raises:
        ValueError: An argument out of range; at the start of `fit`, a model without clusters.
    """

    def __init__(
        self,
        frequency: int = 100,
        begin_step: int = 0,
        end_step: int | None = None,
        *,
        reseed: bool = True,
    ):
        super().__init__()
        if not isinstance(frequency, int) or frequency < 1:
            raise ValueError(f"Expected frequency from 1 on. Received: {frequency=}.")
        if not isinstance(begin_step, int) or begin_step < 0:
            raise ValueError(f"Expected begin_step from 0 on. Received: {begin_step=}.")
        if end_step is not None and (not isinstance(end_step, int) or end_step < begin_step):
            raise ValueError(
                f"Expected end_step to be None or at least begin_step. Received: {begin_step=}, "
                f"{end_step=}."
            )
        self.frequency = frequency
        self.begin_step = begin_step
        self.end_step = end_step
        self.reseed = reseed
        self._found: list = []
        self._last: int | None = None
        self._watch = LossWatch("Codebooks and assignments")

    def set_model(self, model):
        super().set_model(model)
        check_replicas(model)
        self._last = None
        self._found = _clustered(model)
        # A run that broke off in the middle of a step may have left them set.
        self._set_reassigns(False)

    def is_due(self, step: int, last: int | None = None) -> bool:
        """Whether assignments are refreshed at `step`.

        Args:
            step: Steps taken so far.
            last: The step of the call before; with several steps to an execution more than one
                lies between them. By default the step before.
        """
        last = step - 1 if last is None else last
        if self.end_step is not None:
            step = min(step, self.end_step - 1)
        if step < self.begin_step:
            return False
        return step - (step - self.begin_step) % self.frequency > last

    def is_moving(self, step: int) -> bool:
        """Whether assignments follow the weights in the step that is taken next."""
        return self.begin_step <= step and (self.end_step is None or step < self.end_step)

    def on_train_batch_begin(self, batch, logs=None):
        self.update(int(self.model.optimizer.iterations.numpy()))

    def update(self, step: int) -> None:
        """Brings assignments to where they belong before the step that follows `step` others.

        A custom loop calls `set_model` before the first step, this before every step, and
        `finish` after the last.
        """
        if self.is_due(step, self._last):
            refresh_assignments(self.model, reseed=self.reseed)
        if self.is_moving(step):
            self._set_reassigns(True)
        else:
            self._settle()
        self._last = step

    def on_epoch_begin(self, epoch, logs=None):
        self._watch.begin_epoch()

    def on_train_batch_end(self, batch, logs=None):
        self._watch.end_batch(self.model, batch, logs)
        # Before any callback looks at the epoch, in whatever order they are given.
        steps = (self.params or {}).get("steps")
        if steps is not None and batch + 1 >= steps:
            self._settle()

    def on_test_begin(self, logs=None):
        self._settle()

    def on_epoch_end(self, epoch, logs=None):
        self._settle()

    def on_train_end(self, logs=None):
        self.finish()

    def finish(self) -> None:
        """Stores the last assignments, and gives zeros that are new a centroid of their own."""
        self._settle()
        found = _finite(self.model, _latent(self.model))
        pinned = _pin_zeros(found)
        for transform, value in found:
            if id(transform.leader()) in pinned:
                transform.assign(value, reseed=False)

    def _settle(self) -> None:
        """Stores the assignments that the next step would read, and keeps them fixed.

        So validation, a checkpoint and the best weights so far find them. It runs over all weights
        outside of the compiled step, so it is done once an epoch and not at every step.
        """
        if self._found and self._is_set():
            for kernel, transform in self._found:
                value = latent_value(kernel, transform)
                if np.isfinite(value).all():
                    transform.assign_nearest(value)
            self._set_reassigns(False)

    def _is_set(self) -> bool:
        # All are set together: so the first tells of all.
        return bool(self._found[0][1].reassigns.numpy() > 0)

    def _set_reassigns(self, reassigns: bool) -> None:
        if reassigns != self._is_set():
            for _, transform in self._found:
                transform.reassigns.assign(float(reassigns))


def _clustered(model: keras.Model) -> list:
    found = clustered_kernels(model)
    if not found:
        raise ValueError(
            f"Expected a clustered model. Received: {model.name!r}, which has no clusters. Train "
            "what tfcompress.cluster(model) returns."
        )
    return found
