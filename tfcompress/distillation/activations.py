"""Tells whether a tensor of a Keras model holds logits or probabilities."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tfcompress.model.declared import returns_input
from tfcompress.model.graph import producer

_SOFTMAX = (keras.activations.softmax, keras.ops.softmax, tf.nn.softmax)
_SIGMOID = (keras.activations.sigmoid, keras.ops.sigmoid, tf.nn.sigmoid)
# Outputs that are logits, or count as such. Anything else (a lambda, a hard sigmoid) is unknown.
_LOGITS = ("linear", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "log_softmax")
_KINDS = {
    **dict.fromkeys(_SOFTMAX, "softmax"),
    **dict.fromkeys(_SIGMOID, "sigmoid"),
    **{getattr(keras.activations, name): "none" for name in _LOGITS},
}
_LINEAR = (
    layers.ReLU,
    layers.LeakyReLU,
    layers.PReLU,
    layers.ELU,
    layers.BatchNormalization,
    layers.LayerNormalization,
)
# Layers that return their inputs: in training with noise, in 16 bits, or on a grid.
_TRANSPARENT = (
    "Identity",
    "Dropout",
    "AlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "ActivityRegularization",
    "Cast",
    "StopGradient",
)
# A mean of distributions is a distribution, and so are the same rows in another shape.
_MEANS = (
    layers.Average,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
)
_ROWS = (layers.Reshape, layers.Flatten)
# These return logits for logits, but no probabilities for probabilities.
_MIXED = (
    layers.Add,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
)


def output_activations(model: Any) -> list[str | None]:
    """`activation_of` each output, in flatten order; `[]` for what has no graph."""
    try:
        outputs = model.outputs
    except (AttributeError, ValueError):
        return []
    return [activation_of(tensor) for tensor in keras.tree.flatten(outputs or [])]


def activation_of(tensor: keras.KerasTensor) -> str | None:
    """The activation that a symbolic tensor comes out of.

    Layers that do not change what their inputs are (dropout, a quantizer, a mean, a new
    arrangement of the rows) are looked through, where their inputs agree.

    Returns:
        `"softmax"`, `"sigmoid"`, `"none"` for logits, or `None` where it cannot be told.
    """
    made_by = producer(tensor)
    if made_by is None:
        return None
    operation, args, kwargs = made_by
    if isinstance(operation, keras.Model):
        found = output_activations(operation)
        return found[0] if len(found) == 1 else None
    if isinstance(operation, layers.Softmax) or type(operation).__name__ == "Softmax":
        last = operation.axis in (-1, len(tensor.shape) - 1)
        return "softmax" if last else None
    if type(operation).__name__ == "Sigmoid":
        return "sigmoid"
    if callable(getattr(operation, "activation", None)):
        return _of_function(operation.activation)
    if isinstance(operation, _LINEAR):
        return "none"
    return _looked_through(operation, _symbolic(args, kwargs), tensor)


def origins(tensor: keras.KerasTensor) -> list[Any]:
    """The operation that makes a symbolic tensor, and those before it whose values it gives back.

    A head and the quantizer behind it make the same output.
    """
    made_by = producer(tensor)
    if made_by is None:
        return []
    operation, args, kwargs = made_by
    inputs = _symbolic(args, kwargs)
    through = _is_transparent(operation) and len(inputs) == 1
    return [operation, *(origins(inputs[0]) if through else [])]


def _is_transparent(operation: Any) -> bool:
    return type(operation).__name__ in _TRANSPARENT or returns_input(operation)


def _symbolic(*arguments: Any) -> list[keras.KerasTensor]:
    return [t for t in keras.tree.flatten(arguments) if isinstance(t, keras.KerasTensor)]


def _of_function(activation: Any) -> str | None:
    if isinstance(activation, layers.Softmax):
        return "softmax" if activation.axis == -1 else None
    if isinstance(activation, _LINEAR):
        return "none"
    # By identity: an activation of the user's need not be hashable.
    return next((kind for known, kind in _KINDS.items() if known is activation), None)


def _looked_through(operation: Any, inputs: list[Any], output: Any) -> str | None:
    keeps_any = isinstance(operation, _MEANS) or _is_transparent(operation)
    if isinstance(operation, _ROWS):
        keeps_any = inputs[0].shape[-1] == output.shape[-1]
    if not keeps_any and not isinstance(operation, _MIXED):
        return None
    kinds = {activation_of(tensor) for tensor in inputs}
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind if keeps_any or kind == "none" else None
