"""Training on several machines by stock `fit`, with `tf.distribute.MultiWorkerMirroredStrategy`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfcompress.model.keras_private import build_without_batch
from tfcompress.model.replicas import check_replicas
from tfcompress.model.workers import check_same_weights
from tfcompress.quantization.gradients.traffic import GradientTraffic, gradient_traffic

__all__ = ["GradientTraffic", "across_workers", "gradient_traffic", "is_chief"]


def across_workers(model: keras.Model) -> keras.Model:
    """Makes `fit` and `evaluate` of a model work under `MultiWorkerMirroredStrategy`.

    Keras 3 builds a model by a reduction that this strategy refuses, and reduces the metrics of a
    step along an axis that they do not have; and with a loss scale, which `mixed_float16` brings,
    workers wait for each other for ever once the gradient of one overflows. These are mended on
    this one model; its class, and what is saved of it, stay as they are. Call it once, on every
    worker, after `compile`:

    ```python
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = tfc.quantize(make_model(), calibration_data=images)
        model.compile(...)
    tfc.distribute.across_workers(model)
    model.fit(dataset, steps_per_epoch=...)
    ```

    Every worker must make the same calls, `evaluate` too: they wait for each other. Only the chief
    should write files (see `is_chief`).

    Args:
        model: A built model, made in the scope of the strategy.

    Returns:
        The same model.

    Raises:
        ValueError: A model of another strategy, one that is not built or was compiled with
            `steps_per_execution` above 1, or one whose weights are not equal on all workers.
    """
    strategy = model.distribute_strategy
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise ValueError(
            "Expected a model that was made in the scope of a MultiWorkerMirroredStrategy. "
            f"Received: {model.name!r}, of {type(strategy).__name__}."
        )
    if not model.built:
        raise ValueError(
            f"Expected a built model. Received: {model.name!r}. Give it an input shape, or call it "
            "on a batch inside the strategy's scope."
        )
    check_same_weights(model)
    build_without_batch(model)
    _agree_on_overflow(getattr(model, "optimizer", None))
    check_replicas(model)
    for name in ("train_step", "test_step"):
        setattr(model, name, _with_axis(getattr(model, name)))
    return model


def _agree_on_overflow(optimizer: Any) -> None:
    """Makes a loss scale leave out the same steps on all workers: Keras asks each for itself."""
    while optimizer is not None:
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer.check_finite = _of_all_replicas(optimizer.check_finite)
        optimizer = getattr(optimizer, "inner_optimizer", None)


def _of_all_replicas(check_finite: Callable[[Any], tf.Tensor]) -> Callable[[Any], tf.Tensor]:
    if getattr(check_finite, "of_all", False):
        return check_finite

    def check(gradients: Any) -> tf.Tensor:
        is_finite = check_finite(gradients)
        context = tf.distribute.get_replica_context()
        if context is None:
            return is_finite
        overflows = tf.cast(tf.logical_not(is_finite), tf.float32)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, overflows) == 0

    check.of_all = True  # type: ignore[attr-defined]
    return check


def is_chief() -> bool:
    """Whether this process is the worker that writes checkpoints and exports.

    True where nothing is distributed, and on the first worker of a cluster (see `TF_CONFIG`).
    """
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    task_type, task_id = resolver.task_type, resolver.task_id
    if not task_type:
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return task_type == "chief" or (task_type == "worker" and task_id == 0 and not has_chief)


def _with_axis(step: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """A step whose metrics have an axis, along which Keras takes their mean over the workers."""
    if getattr(step, "has_axis", False):
        return step

    @functools.wraps(step)
    def with_axis(data: Any) -> dict[str, Any]:
        return keras.tree.map_structure(lambda value: value[None], step(data))

    with_axis.has_axis = True  # type: ignore[attr-defined]
    return with_axis
