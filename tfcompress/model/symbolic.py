"""Following a `call`: which Keras layers and operations it runs, as a graph.

The function is called on symbolic tensors, twice: once as in inference with the weights as they
are, once as in training with other weights. What the two graphs do not share (a branch, a constant
that was computed from weights, a random number) cannot be followed, and is said in words. A call
that reads the batch size is followed at two of them (`batch_sizes`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfcompress.model import batch_sizes
from tfcompress.model.deep_graphs import deep_graph
from tfcompress.model.graph import Graph, Value
from tfcompress.model.keras_private import calls, kept_calls
from tfcompress.model.merging import READS, Readable, Untraceable, merge
from tfcompress.model.own_states import kept_states
from tfcompress.model.tf_functions import UnknownFunction, translated
from tfcompress.model.training_modes import acting_in_training


def follow(
    function: Callable,
    values: Sequence[Value],
    args: tuple,
    kwargs: dict[str, Any],
    owners: Sequence[keras.Layer],
) -> Graph:
    """The graph of what `function(*args, **kwargs)` does.

    Args:
        function: Composes Keras layers, `keras.ops` and known TensorFlow functions.
        values: The distinct values among the arguments; the graph has an input for each.
        args: The arguments, a structure with `Value` leaves.
        kwargs: Likewise.
        owners: The layers whose variables it may read and whose calls it may make. They are left
            without a trace of this.

    Returns:
        The graph. Its arguments have `Weight` leaves where the function reads a variable.

    Raises:
        Untraceable: It cannot be followed.
    """
    run = _Run(function, values, args, kwargs, owners)
    given = kwargs.get("training")
    modes = (False, True) if given is None else (bool(given), bool(given))
    pair = run.at_one_size
    try:
        first, others = pair(modes)
    except Untraceable as error:
        pair = run.at_two_sizes
        try:
            first, others = pair(modes)
        except Untraceable:
            raise error from None
    else:
        if batch_sizes.needs_size(first):
            pair = run.at_two_sizes
            first, others = pair(modes)
    nested = run.nested[-2:]
    size = batch_sizes.SIZES[0] if pair == run.at_two_sizes else None
    read = run.read
    if read.states and merge(run(modes[0], (), size), run.with_other_states(modes[0], size), read):
        raise Untraceable(READS.format(", ".join(read.states)))
    difference = merge(first, others, read)
    if difference is None:
        _check_modes(first, nested)
        batch_sizes.place_rows(first)
        return first
    once, again = run(modes[0], batch_size=size), run(modes[0], batch_size=size)
    if merge(once, again, read) is not None:
        raise Untraceable("its call draws random numbers")
    if merge(*pair((modes[0], modes[0])), read) is not None:
        raise Untraceable(
            f"its call computes with its weights before they meet the input ({difference})"
        )
    raise Untraceable(f"its call does other operations in training ({difference})")


def _check_modes(graph: Graph, nested: Sequence[list[tuple[keras.Model, Any]]]) -> None:
    """Refuses layers that run in one mode alone: a functional model gives its own to all of them.

    Args:
        graph: The merged graph: `training` is left where it is the same in both modes.
        nested: Of each mode, the functional models that were called and their `training`.
    """
    fixed = [(node.operation, node.kwargs.get("training")) for node in graph.nodes]
    fixed += [one for one, other in zip(*nested, strict=False) if one[1] == other[1]]
    for layer, mode in fixed:
        if mode is not None and isinstance(layer, keras.Layer) and acting_in_training(layer):
            raise Untraceable(
                f"its call runs {layer.name!r} with training={mode}, which would not hold in the "
                "copy: leave the argument out, or freeze a batch norm (trainable = False)"
            )


class _Context(keras.Layer):
    """The context of a call: layers inside it get `training` where they are given none."""

    def call(self, trigger: Any, function: Callable, training: bool | None = None) -> Any:
        function()
        return trigger


class _Run:
    """Calls a function on symbolic tensors."""

    def __init__(
        self,
        function: Callable,
        values: Sequence[Value],
        args: tuple,
        kwargs: dict[str, Any],
        owners: Sequence[keras.Layer],
    ):
        self.function, self.values, self.owners = function, values, owners
        self.args, self.kwargs = args, kwargs
        self.takes_training = "training" in _parameters(function)
        self.read = Readable(owners)
        # Of each run, the functional models that it called, each with its `training`.
        self.nested: list[list[tuple[keras.Model, Any]]] = []

    def at_one_size(self, modes: tuple) -> tuple[Graph, Graph]:
        """The graph in one mode, and that in another with other weights."""
        return self(modes[0]), self(modes[1], self.read.other_weights)

    def at_two_sizes(self, modes: tuple) -> tuple[Graph, Graph]:
        """Both graphs, each at a batch size of its own; the sizes of the first are unknown."""
        if not all(v.shape and v.shape[0] is None for v in self.values):
            raise Untraceable("its call reads the batch size of an input without one")
        first, others = (
            self(mode, weights, size)
            for mode, weights, size in zip(
                modes, ((), self.read.other_weights), batch_sizes.SIZES, strict=True
            )
        )
        if len(first.nodes) == len(others.nodes):
            batch_sizes.free_sizes(first, others)
        return first, others

    def with_other_states(self, training: bool, batch_size: int | None) -> Graph:
        """The graph with other values of each `tf.Variable` that is no variable of Keras."""
        with kept_states(self.read.states):
            self.read.change_states()
            return self(training, (), batch_size)

    def __call__(
        self, training: bool, weights: Sequence[tuple] = (), batch_size: int | None = None
    ) -> Graph:
        with kept_states(self.read.states) as changed:
            graph = self._run(training, weights, batch_size)
        if changed:
            raise Untraceable(
                f"its call updates a tf.Variable ({', '.join(changed)}), a state that Keras does "
                "not know"
            )
        return graph

    def _run(self, training: bool, weights: Sequence[tuple], batch_size: int | None) -> Graph:
        shapes = {
            v: (batch_size or v.shape[0], *v.shape[1:]) if v.shape else () for v in self.values
        }
        feed = {v: keras.Input(batch_shape=shapes[v], dtype=v.spec.dtype) for v in self.values}
        args, kwargs = tree.map_structure(
            lambda leaf: feed[leaf] if isinstance(leaf, Value) else leaf, (self.args, self.kwargs)
        )
        if self.takes_training:
            kwargs = {**kwargs, "training": training}
        with kept_calls(self.owners), tf.GradientTape() as tape:
            with keras.StatelessScope(weights, collect_losses=True) as scope:
                flat = tree.flatten(self._outputs(args, kwargs, training))
            self._check_effects(scope, weights, tape)
            if not flat or not all(isinstance(y, keras.KerasTensor) for y in flat):
                raise Untraceable("its call returns what does not depend on its input")
            with deep_graph(flat):
                model = keras.Model(list(feed.values()), flat)
                models = [call for call in calls(model) if isinstance(call[0], keras.Model)]
                self.nested.append([(called, kw.get("training")) for called, _, kw, _ in models])
                return Graph.from_model(model)

    def _outputs(self, args: tuple, kwargs: dict[str, Any], training: bool) -> Any:
        results: list[Any] = []

        # Errors leave it as results: Keras would add the arguments to their text.
        def function() -> None:
            try:
                with translated():
                    results.append(self.function(*args, **kwargs))
            except Exception as error:
                results.append(error)

        _Context(dtype="float32")(tf.zeros(()), function=function, training=training)
        (result,) = results
        if isinstance(result, (Untraceable, UnknownFunction)):
            raise Untraceable(str(result)) from result
        if isinstance(result, Exception):
            raise Untraceable(_reason(result, self.function)) from result
        return result

    def _check_effects(self, scope: Any, weights: Sequence[tuple], tape: tf.GradientTape) -> None:
        if scope.losses:
            raise Untraceable("its call adds losses")
        given = {id(v): value for v, value in weights}
        for v in self.read.variables:
            if scope.get_current_value(v) is not given.get(id(v)):
                if "seed_generator" in v.path:
                    raise Untraceable("its call draws random numbers")
                raise Untraceable(f"its call updates its state {v.name!r}")
        if set(scope.state_mapping) - set(given):
            # Keras' global generator of seeds, or another layer.
            raise Untraceable("its call draws random numbers or updates what is not its own")
        own = {id(v.value) for v in self.read.variables}
        foreign = [v.name for v in tape.watched_variables() if id(v) not in own]
        if foreign:
            raise Untraceable(f"its call reads {foreign[0]}, a weight of another layer")


def _parameters(function: Callable) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _reason(error: Exception, function: Callable) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    if hasattr(function, "python_function"):
        return "its call is a tf.function: leave the decorator out, for Keras compiles what it runs"
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    if "add_loss()" in text:
        return "its call adds losses"
    if "boolean" in text and "KerasTensor" in text:
        return "the control flow of its call depends on the values of tensors"
    return f"its call cannot run on symbolic tensors ({type(error).__name__}: {text[:160]})"
