"""Variables of a training, made before its step is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfcompress.model.graph import is_functional, output_structure
from tfcompress.model.replicas import check_replicas


class PrebuiltTrainingVariables:
    """Mixin for models whose train step takes long to trace: it is traced once.

    Keras makes the variables of optimizer and metrics within the first trace of the train step,
    and TensorFlow traces a function again that has made variables. Here they are there before.
    """

    # Of `keras.Model`, with which the mixin is combined.
    train_function: Callable[[Any], Any] | None
    run_eagerly: bool

    def make_train_function(self, force: bool = False) -> Any:
        if self.train_function is not None and not force:
            return self.train_function
        check_replicas(self)
        super().make_train_function(force)  # type: ignore[misc]
        traced: Any = self.train_function

        def first_step(iterator: Any) -> Any:
            self.train_function = traced
            # Under a strategy Keras makes them itself.
            if isinstance(iterator, tf.data.Iterator) and not self.run_eagerly:
                self.make_training_variables(iterator.element_spec)
            return traced(iterator)

        self.train_function = first_step
        return first_step

    def make_training_variables(self, data: Any) -> None:
        """Makes the variables of the optimizer, the compiled loss and the metrics.

        Args:
            data: `tf.TypeSpec`s of a batch, in the structure that `fit` gives it.
        """
        if not is_functional(self):
            return
        make_training_variables(self, output_structure(self), data)


def make_training_variables(model: keras.Model, outputs: Any, data: Any) -> None:
    """Makes the variables of a compiled model's optimizer, loss and metrics.

    Args:
        model: A built model.
        outputs: Its outputs: a structure of symbolic tensors.
        data: `tf.TypeSpec`s of a batch, in the structure that `fit` gives it.
    """
    model.optimizer.build(model.trainable_variables)
    # Keras wraps parts of a batch that are `None`.
    data = tree.map_structure(lambda s: None if isinstance(s, tf.OptionalSpec) else s, data)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if y is None:
        return

    def score(x: Any, y: Any, y_pred: Any, sample_weight: Any) -> None:
        # What layers added in their last call belongs to another graph.
        if model.loss is not None and not model.losses:
            keras.Model.compute_loss(model, x, y, y_pred, sample_weight)
        model.compute_metrics(x, y, y_pred, sample_weight)

    predicted = tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), outputs)
    # Traced and never run: no state changes.
    tf.function(score, autograph=False).get_concrete_function(x, y, predicted, sample_weight)
