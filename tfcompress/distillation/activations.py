"""Tells whether a tensor of a Keras model holds logits or probabilities."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.model.graph import producer

_NAMES = {keras.activations.softmax: "softmax", keras.activations.sigmoid: "sigmoid"}
_OPERATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
# Layers without an `activation` whose output may be anything, so it is what we call logits.
_LINEAR = (
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)
# What gives back the values it gets: in training with noise, in 16 bits, or on a grid.
_TRANSPARENT = (
    "Identity",
    "Dropout",
    "AlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "ActivityRegularization",
    "FakeQuantize",
    "Cast",
    "StopGradient",
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

    Layers that change neither the shape nor the kind of their input (dropout, identity,
    a quantizer) are looked through.

    Returns:
        `"softmax"`, `"sigmoid"`, `"none"` for logits, or `None` where it cannot be told.
    """
    made_by = producer(tensor)
    if made_by is None:
        return None
    operation, args, kwargs = made_by
    kind = _kind(operation)
    if kind is not None:
        return kind
    inputs = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
    if len(inputs) == 1 and type(operation).__name__ in _TRANSPARENT:
        return activation_of(inputs[0])
    return None


def _kind(operation: Any) -> str | None:
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    if type(operation).__name__ in _OPERATIONS:
        return _OPERATIONS[type(operation).__name__]
    if callable(getattr(operation, "activation", None)):
        return _NAMES.get(operation.activation, "none")
    if isinstance(operation, keras.Model):
        found = output_activations(operation)
        return found[0] if len(found) == 1 else None
    return "none" if isinstance(operation, _LINEAR) else None
