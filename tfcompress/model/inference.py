"""Runs the calls of a functional model one after another, in inference, in little memory.

Keras keeps every tensor of an eager run until its end. Here a tensor is freed as soon as nothing
reads it any more, which needs neither a trace nor a graph optimization of seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model.batch_sizes import SampleConstant
from tfcompress.model.graph import Graph, Node, Value

Call = Callable[[Node, tuple, dict], Any]


def call_in_inference(node: Node, args: tuple, kwargs: dict) -> Any:
    """What a call gives in inference."""
    if isinstance(node.operation, keras.Layer):
        # As Keras' functional models do, whatever the call itself says.
        kwargs = {**kwargs, "training": False}
    return node.operation(*args, **kwargs)


def run(graph: Graph, batch: Any, call: Call = call_in_inference) -> list[tf.Tensor]:
    """The flat outputs of a model for a batch of inputs.

    Args:
        graph: The graph of the model.
        batch: Arrays in the structure of its inputs.
        call: Called once per node with the arguments already evaluated.
    """
    return run_together(graph, [batch], lambda node, calls: [call(node, *c) for c in calls])[0]


def run_together(
    graph: Graph,
    batches: Sequence[Any],
    call: Callable[[Node, list[tuple[tuple, dict]]], Sequence[Any]],
) -> list[list[tf.Tensor]]:
    """Runs several batches, each call for all of them before the next call.

    Args:
        graph: The graph of the model.
        batches: Arrays in the structure of its inputs.
        call: `call(node, calls)` gets the arguments `(args, kwargs)` of a call for every batch and
            returns what it gives for each. It may change the layer in between.

    Returns:
        The flat outputs of each batch.
    """
    known: list[dict[Value, Any]] = [feed(graph, batch) for batch in batches]
    last_reader = last_readers(graph)
    for i, node in enumerate(graph.nodes):
        results = call(node, [arguments(node, values) for values in known])
        for values, result in zip(known, results, strict=True):
            values.update(zip(node.outputs, tree.flatten(result), strict=True))
        for value in {*node.inputs, *node.outputs}:
            if last_reader[value] <= i:
                for values in known:
                    values.pop(value, None)
    return [[values[value] for value in graph.flat_outputs] for values in known]


def constant_values(graph: Graph) -> dict[Value, np.ndarray]:
    """Value that no input goes into → what it is for one sample, in inference.

    They begin at weights that every sample gets, such as class tokens and learned queries.
    """
    known: dict[Value, np.ndarray] = {}
    for node in graph.nodes:
        if isinstance(node.operation, SampleConstant):
            known[node.output] = node.operation.row()
        elif node.inputs and all(value in known for value in node.inputs):
            given = {value: tf.constant(known[value]) for value in node.inputs}
            results = tree.flatten(call_in_inference(node, *arguments(node, given)))
            known.update(zip(node.outputs, map(np.asarray, results), strict=True))
    return known


def most_values(graph: Graph) -> int:
    """The most numbers of a sample that `run` holds at a time; axes of unknown size count as 1."""
    last_reader = last_readers(graph)
    held = {value: size(value) for value in graph.flat_inputs}
    most = sum(held.values())
    for i, node in enumerate(graph.nodes):
        held.update((value, size(value)) for value in node.outputs)
        most = max(most, sum(held.values()))
        for value in {*node.inputs, *node.outputs}:
            if last_reader[value] <= i:
                held.pop(value, None)
    return max(1, most)


def rows_at_a_time(graph: Graph, values: int) -> int:
    """How many samples `run` takes at a time.

    Args:
        graph: The graph of the model.
        values: The most numbers to hold, if more than one sample is taken.

    Returns:
        At least 1; the batch size of a model whose inputs have a fixed one.
    """
    return fixed_batch_size(graph.flat_inputs) or max(1, values // most_values(graph))


def fixed_batch_size(inputs: Sequence[Any]) -> int | None:
    """The batch size that the inputs of a model have; `None` where it takes any.

    Args:
        inputs: The flat inputs, each with its `shape`.
    """
    return next((x.shape[0] for x in inputs if x.shape and x.shape[0]), None)


def split(batch: Any, size: int) -> Iterator[Any]:
    """Cuts a batch, a structure of arrays of one length, into batches of at most `size`."""
    length = len(tree.flatten(batch)[0])
    if length <= size:
        yield batch
        return
    for start in range(0, length, size):
        yield tree.map_structure(lambda array, s=start: array[s : s + size], batch)


def feed(graph: Graph, batch: Any) -> dict[Value, Any]:
    return {
        value: _as_input(array, value)
        for value, array in zip(graph.flat_inputs, tree.flatten(batch), strict=True)
    }


def _as_input(array: Any, value: Value) -> tf.Tensor:
    """An array as the tensor that Keras makes of it for an input."""
    tensor = tf.convert_to_tensor(array)
    if tensor.dtype != tf.string:
        tensor = tf.cast(tensor, value.spec.dtype)
    if tensor.shape.rank == len(value.shape) - 1 and value.shape[-1] == 1:
        tensor = tensor[..., None]
    return tensor


def arguments(node: Node, values: dict[Value, Any]) -> tuple[tuple, dict]:
    def fill(leaf: Any) -> Any:
        return values[leaf] if isinstance(leaf, Value) else leaf

    return tree.map_structure(fill, node.args), tree.map_structure(fill, node.kwargs)


def last_readers(graph: Graph) -> dict[Value, int]:
    """Value → position of the last call that reads it; past the end for an output."""
    last = {value: -1 for node in graph.nodes for value in node.outputs}
    for i, node in enumerate(graph.nodes):
        last.update((value, i) for value in node.inputs)
    last.update((value, len(graph.nodes)) for value in graph.flat_outputs)
    return last


def size(value: Value) -> int:
    """Numbers of a sample in a tensor; axes of unknown size count as 1."""
    return math.prod(n or 1 for n in value.shape[1:])
