"""Whether a loss takes the labels, before any work that ends with a training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, tree

from tfcompress.analysis.measuring.files import predict
from tfcompress.analysis.measuring.samples import Samples
from tfcompress.analysis.recipes.objective import Objective, trains_itself
from tfcompress.model.graph import output_structure

# Samples that the loss is computed of.
_FEW = 32


def check_training(
    model: keras.Model,
    objective: Objective,
    samples: Samples,
    distillation: Mapping[str, float] | None = None,
) -> None:
    """Refuses a training that lacks something, or whose loss does not take the labels.

    Args:
        model: The float model, functional; the loss of one with a train step of its own is not
            checked.
        objective: What it is trained to.
        samples: Training samples.
        distillation: The settings of a teacher that was asked for, or `None`.

    Raises:
        ValueError: No loss, no labels or labels that the loss does not take, or a teacher that
            could not act.
    """
    if distillation is not None:
        _check_teacher(model, objective, distillation)
    if trains_itself(model) or (distillation is not None and distillation.get("labels") == 0):
        return
    if objective.is_silent:
        raise ValueError(
            "Expected a compiled model, whose loss candidates are trained with. Received: a model "
            f"that is not compiled, with outputs {list(objective.kinds)}. Call model.compile(...) "
            "first."
        )
    if samples.labels is None:
        raise ValueError(
            "Expected `train` with labels: data as (x, y), or batches of them. Received: inputs "
            "alone, by which nothing but {'distill': {'labels': 0}} trains."
        )
    few = Samples(*(_first(part) for part in (samples.inputs, samples.labels)))
    check_loss(model, objective.compile_arguments(model), few.labels, predict(model, few))


def _check_teacher(
    model: keras.Model, objective: Objective, distillation: Mapping[str, float]
) -> None:
    if trains_itself(model):
        raise ValueError(
            "Expected a model that is trained by the fit of Keras, for 'distill' has a train step "
            f"of its own. Received: {type(model).__name__}, with its own "
            "train_step or compute_loss. Leave 'distill' out."
        )
    is_scored = any(kind != "values" for kind in objective.kinds)
    if "temperature" in distillation and not is_scored:
        raise ValueError(
            "Expected 'temperature' of 'distill' with a model of class scores. Received: outputs "
            f"that hold {list(objective.kinds)}, which are taught by their loss."
        )


def check_loss(model: keras.Model, loss: Mapping[str, Any], labels: Any, outputs: Any) -> None:
    """Refuses labels that a loss does not take.

    Args:
        model: The float model, functional.
        loss: Arguments of `compile`: `loss`, and `loss_weights` where there are some.
        labels: Labels in the structure of the training data, `(n, …)` each.
        outputs: The flat outputs of the float model on the same samples: an array, or a list.

    Raises:
        ValueError: Labels that the loss does not take, such as one-hot vectors for a sparse
            cross-entropy.
    """
    probe = _probe(model)
    keras.Model.compile(probe, **loss)
    flat = [tf.convert_to_tensor(o) for o in tree.flatten(outputs)]
    given = tree.map_structure(lambda a: None if a is None else tf.convert_to_tensor(a), labels)
    predicted = tree.pack_sequence_as(output_structure(model), flat)
    try:
        keras.Model.compute_loss(probe, None, given, predicted, None)
    except Exception as error:
        raise ValueError(
            f"Expected labels that the loss takes, {_shown(loss['loss'])}. Received: labels of "
            f"shape {_shapes(labels)} for outputs of shape {_shapes(outputs)}: {_reason(error)}. A "
            "sparse cross-entropy takes class numbers, a categorical one one-hot vectors."
        ) from error


def _probe(model: keras.Model) -> keras.Model:
    """A model of the same outputs without layers, and so without losses that layers add."""
    symbols = tree.flatten(output_structure(model))
    names = list(getattr(model, "output_names", None) or [])
    if len(set(names)) != len(symbols):
        names = [f"output_{i}" for i in range(len(symbols))]
    inputs = [keras.Input(batch_shape=s.shape, dtype=s.dtype) for s in symbols]
    found = [layers.Identity(name=n)(i) for n, i in zip(names, inputs, strict=True)]
    return keras.Model(inputs, tree.pack_sequence_as(output_structure(model), found))


def _first(arrays: Any) -> Any:
    """The first few samples."""
    return tree.map_structure(lambda a: None if a is None else np.asarray(a)[:_FEW], arrays)


def _shapes(arrays: Any) -> Any:
    return tree.map_structure(lambda a: None if a is None else np.shape(a), arrays)


def _reason(error: Exception) -> str:
    """The first line of a message, without what TensorFlow says of its operator."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return re.sub(r"^\{\{.*?\}\} ?| *\[Op:.*$", "", first).rstrip(". ")


def _shown(loss: Any) -> str:
    names = [str(getattr(one, "name", getattr(one, "__name__", one))) for one in tree.flatten(loss)]
    return ", ".join(dict.fromkeys(names))
