"""SpectralNormalization: the layer inside it, whose kernel a constraint normalizes.

Keras divides the kernel by its spectral norm at the start of a training step and computes with it
as it is in inference. The constraint divides behind each update, so that what is evaluated and
exported is normalized, too.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.registry import OperatorSpec, register

#: Steps by which the largest singular value is found; Keras goes on from those of the step before.
_ITERATIONS = 16


@keras.saving.register_keras_serializable(package="tfcompress")
class UnitSpectralNorm(keras.constraints.Constraint):
    """w / σ(w), with the largest singular value σ of w as a matrix of (inputs, outputs).

    After Miyato 2018, https://arxiv.org/abs/1802.05957. σ comes from power iterations. A kernel of
    zeros stays.

    Args:
        then: A constraint that is applied behind it; `None` for none.
    """

    def __init__(self, then: Any = None) -> None:
        self.then = keras.constraints.get(then)

    def __call__(self, w: Any) -> tf.Tensor:
        w = tf.convert_to_tensor(w)
        matrix = tf.reshape(w, (-1, w.shape[-1]))
        u = tf.random.stateless_normal((1, w.shape[-1]), (1, 1), w.dtype)
        v = tf.zeros((1, matrix.shape[0]), w.dtype)
        for _ in range(_ITERATIONS):
            v = tf.math.l2_normalize(tf.matmul(u, matrix, transpose_b=True))
            u = tf.math.l2_normalize(tf.matmul(v, matrix))
        largest = tf.squeeze(tf.matmul(tf.matmul(v, matrix), u, transpose_b=True))
        y = w / tf.where(largest > 0, largest, tf.ones_like(largest))
        return y if self.then is None else self.then(y)

    def get_config(self) -> dict[str, Any]:
        return {"then": keras.constraints.serialize(self.then)}


def _spectral(b: Builder, node: Node) -> Value | None:
    """The layer inside, with a constraint on its kernel."""
    layer = node.operation
    inner = layer.layer
    names = ("embeddings_constraint", "depthwise_constraint", "kernel_constraint")
    config = inner.get_config()
    name = next((n for n in names if n in config), None)
    if name is None or len(node.inputs) != 1:
        return None
    constraint = UnitSpectralNorm(keras.constraints.deserialize(config[name]))

    def make(n: str) -> keras.Layer:
        trainable = inner.trainable and layer.trainable
        made = type(inner).from_config({**config, "name": n, "trainable": trainable})
        setattr(made, name, constraint)
        return made

    weights = {v.name: v for v in inner.variables}
    return b.call(make, "", node.inputs[0], weights=weights)


register(layers.SpectralNormalization, spec=OperatorSpec(decompose=_spectral))
