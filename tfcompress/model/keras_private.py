"""What Keras has no public name for. Nothing else in the library reads a private Keras attribute.

`tests/model/test_keras_private.py` fails, by name, when a Keras release moves one of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import keras


def all_layers(layer: keras.Layer) -> list[keras.Layer]:
    """The layer itself and every layer inside it, at any depth; models count as layers."""
    return list(layer._flatten_layers())


def direct_sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a layer holds itself."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def functional_part(model: keras.Model) -> keras.Model:
    """The model that holds the calls: a `Sequential` has a functional model inside."""
    return model._functional if isinstance(model, keras.Sequential) else model


def has_calls(model: keras.Model) -> bool:
    """Whether a model is functional: it knows the calls that it is made of."""
    return hasattr(model, "_nodes_by_depth")


def calls(model: keras.Model) -> Iterator[tuple[Any, tuple, dict[str, Any], list]]:
    """Yields `(operation, args, kwargs, outputs)` of a functional model, in running order."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                yield node.operation, node.arguments.args, node.arguments.kwargs, node.outputs


def standard_inputs(model: keras.Model, inputs: Any) -> list:
    """The flat inputs of a functional model, of its dtypes and ranks, for what it is called on."""
    return list(model._standardize_inputs(inputs))


def call_of(tensor: keras.KerasTensor) -> tuple[Any, tuple, dict[str, Any]] | None:
    """`(operation, args, kwargs)` of the call that gave a symbolic tensor; `None` for an input."""
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    node = history.operation._inbound_nodes[history.node_index]
    if node.is_input:
        return None
    return history.operation, node.arguments.args, node.arguments.kwargs


def outputs_of_call(tensor: keras.KerasTensor) -> list[keras.KerasTensor]:
    """All outputs of the call that gave a symbolic tensor."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index].outputs


def tensors_read(layer: keras.Layer) -> list[keras.KerasTensor]:
    """The first symbolic tensor that each call of a layer has read."""
    return [node.input_tensors[0] for node in layer._inbound_nodes]


def padding_mask(tensor: Any) -> Any:
    """The padding mask that Keras attaches to a tensor; `None` where there is none."""
    return getattr(tensor, "_keras_mask", None)


def set_padding_mask(tensor: Any, mask: Any) -> None:
    """Attaches a padding mask to a tensor."""
    tensor._keras_mask = mask


@contextlib.contextmanager
def kept_calls(layers: Sequence[keras.Layer]) -> Iterator[None]:
    """Within it, layers can be called on symbolic tensors; they forget these calls afterwards."""
    inner = {id(each): each for layer in layers for each in all_layers(layer)}
    counts = [(la, len(la._inbound_nodes), len(la._outbound_nodes)) for la in inner.values()]
    try:
        yield
    finally:
        for layer, inbound, outbound in counts:
            del layer._inbound_nodes[inbound:]
            del layer._outbound_nodes[outbound:]


@contextlib.contextmanager
def adding_variables(layer: keras.Layer) -> Iterator[None]:
    """Within it, a layer that is built takes variables, as Keras' own LoRA does."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def build_without_batch(model: keras.Model) -> None:
    """Makes `fit` and `evaluate` build the optimizer alone, not the model by a batch of data."""

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        optimizer = getattr(model, "optimizer", None)
        if optimizer is not None and not optimizer.built:
            with model.distribute_strategy.scope():
                optimizer.build(model.trainable_variables)

    if not callable(getattr(model, "_maybe_symbolic_build", None)):
        raise AttributeError("keras.Model._maybe_symbolic_build has moved")
    model._maybe_symbolic_build = build


def leave_out_reduction(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes an optimizer take gradients as they are, which replicas have summed already.

    Of one that wraps another, such as a `LossScaleOptimizer`, it is the innermost that sums.
    """
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    if not callable(getattr(optimizer, "_all_reduce_sum_gradients", None)):
        raise AttributeError("keras.Optimizer._all_reduce_sum_gradients has moved")
    optimizer._all_reduce_sum_gradients = list


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Makes `fit` begin with this epoch; `None`: with what it is given."""
    if not hasattr(model, "_initial_epoch"):
        raise AttributeError("keras.Model._initial_epoch has moved")
    model._initial_epoch = epoch


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """The arguments that a model was compiled with, as objects; empty where it was not.

    `get_compile_config` has functions and classes of the user's own by their names alone.
    """
    if not getattr(model, "compiled", False) or not hasattr(model, "_compile_config"):
        return {}
    return dict(model._compile_config.config)


def metric_direction(metric: keras.metrics.Metric) -> Literal["max", "min"] | None:
    """Which values of a metric are better, by its class; `None` where Keras does not say."""
    return {"up": "max", "down": "min"}.get(getattr(metric, "_direction", None))  # type: ignore


def mean_function(metric: keras.metrics.Metric) -> Callable[[Any, Any], Any] | None:
    """The function of labels and outputs that a metric is the mean of; `None` for any other."""
    wrapper, cls = keras.metrics.MeanMetricWrapper, type(metric)
    if not isinstance(metric, wrapper) or (cls.update_state, cls.result) != (
        wrapper.update_state,
        wrapper.result,
    ):
        return None
    return lambda labels, outputs: metric._fn(labels, outputs, **metric._fn_kwargs)


def conv_lstm_cell() -> type[keras.Layer]:
    """The class of the cell of ConvLSTM layers.

    Not taken from a layer: making one draws a seed, and a multi-worker strategy must be made before
    TensorFlow runs anything.
    """
    from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

    return ConvLSTMCell
