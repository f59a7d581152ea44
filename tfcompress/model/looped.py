"""Runs a graph with its repeated steps as loops, inside a TensorFlow function.

What every call computes is the same as without them. TensorFlow has one step to trace and to
optimize, whatever the length of a sequence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.loops import Loop, find_loops, in_running_order
from tfcompress.model.stepwise import Stepwise

Call = Callable[[Node, tuple, dict], Any]


class LoopedGraph:
    """A functional model's graph and the loops in it.

    Args:
        model: The model, whose calls do not change.
    """

    def __init__(self, model: keras.Model) -> None:
        self.graph = Graph.from_model(model)
        self.loops = find_loops(self.graph)
        self._order = in_running_order(self.graph, self.loops)

    def run(self, inputs: list[tf.Tensor], training: bool | None) -> Any:
        """The outputs, in the structure of the model's, for its flat inputs."""
        known: dict[Value, Any] = dict(zip(self.graph.flat_inputs, inputs, strict=True))
        for unit in self._order:
            if isinstance(unit, Loop):
                known.update(_run_loop(unit, known, training))
            else:
                _run_node(unit, known, training)
        return tree.map_structure(lambda value: known[value], self.graph.outputs)


def can_loop() -> bool:
    """Whether loops pay and are possible here: in a graph, on one device, with real variables."""
    if not tf.inside_function() or tf.distribute.has_strategy():
        return False
    with keras.StatelessScope(initialize_variables=False) as scope:
        return scope.original_scope is None


def _run_node(node: Node, known: dict[Value, Any], training: bool | None) -> None:
    def fill(leaf: Any) -> Any:
        return known[leaf] if isinstance(leaf, Value) else leaf

    args, kwargs = tree.map_structure(fill, (node.args, node.kwargs))
    if isinstance(node.operation, keras.Layer) and training is not None:
        # As Keras' functional models do, whatever the call itself says.
        kwargs = {**kwargs, "training": training}
    results = tree.flatten(node.operation(*args, **kwargs))
    known.update(zip(node.outputs, results, strict=True))


def _run_loop(loop: Loop, known: dict[Value, Any], training: bool | None) -> dict[Value, tf.Tensor]:
    """What is read of a loop after it."""
    own = {v: all_steps for v, all_steps in loop.given.items() if len(set(all_steps)) > 1}
    common = {v: known[v] for v in loop.given if v not in own}
    sequences = [
        tf.TensorArray(known[v].dtype, size=loop.count).unstack(
            tf.stack([known[step] for step in all_steps])
        )
        for v, all_steps in own.items()
    ]
    before = list(loop.carried)
    results = [
        tf.TensorArray(tf.as_dtype(v.spec.dtype), size=loop.count, element_shape=v.shape)
        for v in loop.results
    ]
    stepwise = _stepwise(loop)

    def body(
        step: tf.Tensor, states: list, extremes: tuple, arrays: list
    ) -> tuple[tf.Tensor, list, tuple, list]:
        inside = {**common, **dict(zip(before, states, strict=True))}
        for value, sequence in zip(own, sequences, strict=True):
            inside[value] = sequence.read(step)
            inside[value].set_shape(known[value].shape)
        for node in loop.body:
            _run_node(node, inside, training)
        seen = [pair for layer in stepwise for pair in layer.seen()]
        counts[:] = [len(layer.seen()) for layer in stepwise]
        if seen:
            lowest, highest = (tf.stop_gradient(tf.stack(each)) for each in zip(*seen, strict=True))
            extremes = tf.minimum(extremes[0], lowest), tf.maximum(extremes[1], highest)
        arrays = [a.write(step, inside[v]) for a, v in zip(arrays, loop.results, strict=True)]
        return step + 1, [inside[loop.carried[v]] for v in before], extremes, arrays

    counts: list[int] = []
    with contextlib.ExitStack() as stack:
        for layer, calls in stepwise.items():
            stack.enter_context(layer.over_steps(calls, bool(training)))
        states = [tf.convert_to_tensor(known[v]) for v in before]
        shapes = [_common_shape(loop, v, s) for v, s in zip(before, states, strict=True)]
        _, _, extremes, arrays = tf.while_loop(
            lambda step, *_: step < loop.count,
            body,
            (tf.constant(0), states, (tf.constant(np.inf), tf.constant(-np.inf)), results),
            shape_invariants=(
                *(tf.TensorShape([]), shapes),
                (tf.TensorShape(None), tf.TensorShape(None)),
                [tf.TensorShape(None)] * len(results),
            ),
            maximum_iterations=loop.count,
        )
    if any(counts):
        rows = tf.ensure_shape(tf.stack(extremes, 1), [sum(counts), 2])
        for layer, part in zip(stepwise, tf.split(rows, counts), strict=True):
            layer.take_seen(part)
    found: dict[Value, tf.Tensor] = {}
    for array, all_steps in zip(arrays, loop.results.values(), strict=True):
        stacked = array.stack()
        found.update(zip(all_steps, tf.unstack(stacked, num=loop.count), strict=True))
    return found


def _stepwise(loop: Loop) -> dict[Stepwise, list[int]]:
    """The layers of a loop that compute something once for all steps, and their calls."""
    found: dict[Stepwise, list[int]] = {}
    for node in loop.body:
        if isinstance(node.operation, Stepwise):
            found.setdefault(node.operation, []).append(node.kwargs.get("call_index", 0))
    return found


def _common_shape(loop: Loop, value: Value, state: tf.Tensor) -> tf.TensorShape:
    """The shape that a state has at every step, as far as it is known."""
    carried = tf.TensorShape(loop.carried[value].shape)
    return carried.most_specific_compatible_shape(state.shape)
