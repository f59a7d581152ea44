"""Batches without a sample, which a short last batch leaves to some replicas.

TensorFlow does not write the gradient of a depthwise kernel for such a batch: it is whatever lies
in memory. Keras' batch norm averages no values, which gives NaN. Convolutions, dense, recurrent and
other norm layers give zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tfcompress.model.keras_private import direct_sublayers

#: Layer classes → the variable whose gradient TensorFlow does not write for a batch of no samples.
UNWRITTEN: dict[type, str] = {
    layers.DepthwiseConv1D: "kernel",
    layers.DepthwiseConv2D: "kernel",
    layers.SeparableConv1D: "depthwise_kernel",
    layers.SeparableConv2D: "depthwise_kernel",
}


def unwritten(cls: type) -> str | None:
    """The variable of a layer class whose gradient needs samples; `None` where there is none."""
    return next((name for known, name in UNWRITTEN.items() if issubclass(cls, known)), None)


def zero_without_samples(kernel: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
    """The kernel itself, whose gradient is 0 where the batch has no sample.

    Args:
        kernel: A depthwise kernel.
        inputs: What it is applied to, (batch, ...).
    """
    if inputs.shape[0]:
        return kernel
    has_samples = tf.shape(inputs)[0] > 0

    @tf.custom_gradient
    def identity(value: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.where(has_samples, upstream, tf.zeros_like(upstream))

        return tf.identity(value), gradient

    return identity(kernel)


def needs_samples(layer: keras.Layer) -> bool:
    """Whether nothing is known of the gradients of Keras' or a user's layer without samples.

    A layer of a user's own that has trainable weights may run any operation on them.
    """
    if not (layer.built and layer.trainable):
        return False
    home = type(layer).__module__.split(".")[0]
    if home == "tfcompress":
        return False
    if isinstance(layer, layers.BatchNormalization):
        return not layer.synchronized
    if unwritten(type(layer)) is not None:
        return True
    if home == "keras":
        return False
    inner = {id(v) for each in direct_sublayers(layer) for v in each.trainable_variables}
    return any(id(v) not in inner for v in layer.trainable_variables)


def stop_without_samples(model: keras.Model, names: str) -> None:
    """Makes the train step of a model stop before a batch of which a replica has no sample.

    Call it before the step is traced. Weights stay as the batch before has left them.

    Args:
        model: A model that is trained on several replicas.
        names: Layers that need samples, for the message.
    """
    step: Callable[[Any], Any] = model.train_step
    if getattr(step, "stops", False):
        return

    @functools.wraps(step)
    def checked(data: Any) -> Any:
        count = _num_samples(data)
        if count is None:
            return step(data)
        message = (
            "Expected samples for every replica. Received: a batch of fewer samples than "
            f"replicas, which leaves one without any, where {names} would make weights NaN or "
            "worse. No weight has changed in this step. Batch the data with drop_remainder=True, "
            "or make the last batch larger"
        )
        with tf.control_dependencies([tf.debugging.assert_positive(count, message=message)]):
            data = tf.nest.map_structure(
                lambda t: tf.identity(t) if isinstance(t, tf.Tensor) else t, data
            )
        return step(data)

    checked.stops = True  # type: ignore[attr-defined]
    # A step that was traced before has no such check.
    model.train_function = None
    model.train_step = checked


def _num_samples(data: Any) -> tf.Tensor | None:
    """Of a batch; `None` where it is known not to be 0, or not known at all."""
    tensors = [t for t in tf.nest.flatten(data) if isinstance(t, tf.Tensor) and t.shape.rank != 0]
    if not tensors or tensors[0].shape.rank is None or tensors[0].shape[0]:
        return None
    return tf.shape(tensors[0])[0]
