"""Finetuning of a candidate, by default with the float model as its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.analysis.measuring.measures import Kind
from tfcompress.distillation import Distiller, LogitsDistillation
from tfcompress.model.graph import input_structure


def finetune(
    model: keras.Model,
    teacher: keras.Model,
    data: Any,
    *,
    kinds: Sequence[Kind],
    epochs: int,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    distill: bool = True,
    distillation: Mapping[str, float] | None = None,
    optimizer: Callable[[Any], keras.optimizers.Optimizer] = keras.optimizers.Adam,
    learning_rate_schedule: str = "cosine",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int = 0,
    verbose: int = 0,
) -> None:
    """Trains a model, by default by Adam, with a learning rate that falls by half a cosine.

    The loss is the teacher's compiled one; of a teacher that is not compiled, cross-entropy where
    its outputs are class scores. With `distill` the KL divergence of class scores from the
    teacher's is added to it.

    Args:
        model: The model to train.
        teacher: The float model.
        data: `(x, y)` as arrays, or batches as for `fit`.
        kinds: What each output of the teacher holds.
        epochs: Passes over the data, 0 or more.
        learning_rate: At the beginning.
        batch_size: Of arrays.
        distill: Whether the teacher takes part.
        distillation: `"temperature"`, `"weight"` of the teacher and `"labels"`, the weight of the
            compiled loss; 1 each by default.
        optimizer: Learning rate, or its schedule → the optimizer.
        learning_rate_schedule: `"cosine"`, which ends at 0, or `"constant"`.
        callbacks: For `fit`.
        seed: Of the order of samples.
        verbose: As for `fit`.

    Raises:
        ValueError: The model is not compiled, and its outputs do not tell the loss.
    """
    if epochs < 1:
        return
    keras.utils.set_random_seed(seed)
    batches, steps = training_batches(data, model, batch_size, seed)
    classes = all(kind in ("logits", "probabilities") for kind in kinds)
    student = model
    if distill and classes:
        given = {"temperature": 1.0, "weight": 1.0, "labels": 1.0, **(distillation or {})}
        student = Distiller(
            teacher,
            model,
            LogitsDistillation(given["temperature"]),
            loss_weights=[given["weight"]],
            student_loss_weight=given["labels"],
        )
    rate: Any = learning_rate
    if steps is not None and learning_rate_schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    student.compile(optimizer(rate), loss=_loss(teacher, kinds))
    # Keras warns where a dataset, which has an order of its own, is asked to be shuffled.
    order = {} if isinstance(batches, keras.utils.PyDataset) else {"shuffle": False}
    student.fit(batches, epochs=epochs, callbacks=list(callbacks), verbose=verbose, **order)


def training_batches(
    data: Any, model: keras.Model, batch_size: int, seed: int = 0
) -> tuple[Any, int | None]:
    """`(data for fit, steps of an epoch)`; arrays are shuffled, and cast in batches."""
    if not _is_arrays(data):
        length = getattr(data, "__len__", None)
        try:
            return data, int(length()) if length is not None else None
        except TypeError:
            return data, None
    specs = input_structure(model)

    def cast(x: Any, *rest: Any) -> tuple:
        arrays = [
            tf.cast(a, s.dtype) for a, s in zip(tree.flatten(x), tree.flatten(specs), strict=True)
        ]
        return (tree.pack_sequence_as(x, arrays), *rest)

    count = len(tree.flatten(data)[0])
    size = min(batch_size, count)
    arrays = tree.map_structure(np.asarray, data)
    batches = tf.data.Dataset.from_tensor_slices(arrays).shuffle(count, seed=seed)
    return batches.batch(size, drop_remainder=True).map(cast).prefetch(2), count // size


def _is_arrays(data: Any) -> bool:
    return isinstance(data, tuple) and all(hasattr(leaf, "shape") for leaf in tree.flatten(data))


def _loss(teacher: keras.Model, kinds: Sequence[Kind]) -> Any:
    loss = getattr(teacher, "loss", None)
    if loss is not None:
        return loss
    if len(kinds) == 1 and kinds[0] in ("logits", "probabilities"):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=kinds[0] == "logits")
    raise ValueError(
        "Expected a compiled model, whose loss candidates are trained with. Received: a model that "
        f"is not compiled, with outputs {list(kinds)}. Call model.compile(...) first."
    )
