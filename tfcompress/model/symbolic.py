"""Following a `call`: which Keras layers and operations it runs, as a graph.

The function is called on symbolic tensors, twice: once as in inference with the weights as they
are, once as in training with other weights. What the two graphs do not share (a branch, a constant
that was computed from weights, a random number) cannot be followed, and is said in words. A call
that reads the batch size is followed at two of them (`batch_sizes`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model import batch_sizes
from tfcompress.model.deep_graphs import deep_graph
from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.keras_private import calls, kept_calls
from tfcompress.model.own_states import kept_states, own_states
from tfcompress.model.tf_functions import UnknownFunction, translated
from tfcompress.model.training_modes import acts_in_training

_READS = "its call reads a tf.Variable ({}): make it a weight, by self.add_weight()"


class Untraceable(Exception):
    """Why a call cannot be followed, as a clause: "its call …"."""


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """An argument of a call that is a variable of the layer, possibly transposed or reshaped.

    Attributes:
        variable: The variable.
        shape: The shape that the call reads it in.
        axes: The order of the variable's axes in it; `None` for their own order.
    """

    variable: keras.Variable
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None


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
    variables = {id(v): v for owner in owners for v in owner.variables}
    run = _Run(function, values, args, kwargs, owners, list(variables.values()))
    is_given = kwargs.get("training") is not None
    modes = (False, True) if "training" in _parameters(function) and not is_given else (None, None)
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
    nested = run.nested_in_inference
    size = batch_sizes.SIZES[0] if pair == run.at_two_sizes else None
    if run.states and _merge(run(modes[0], (), size), run.with_other_states(modes[0], size), run):
        raise Untraceable(_READS.format(", ".join(run.states)))
    difference = _merge(first, others, run)
    if difference is None:
        _check_modes(first, nested)
        batch_sizes.place_rows(first)
        return first
    once, again = run(modes[0], batch_size=size), run(modes[0], batch_size=size)
    if _merge(once, again, run) is not None:
        raise Untraceable("its call draws random numbers")
    if _merge(*pair((modes[0], modes[0])), run) is not None:
        raise Untraceable(
            f"its call computes with its weights before they meet the input ({difference})"
        )
    raise Untraceable(f"its call does other operations in training ({difference})")


def _check_modes(graph: Graph, nested: Sequence[keras.Model]) -> None:
    """Refuses calls in inference mode alone: a functional model gives its `training` to all."""
    called = list(nested)
    for node in graph.nodes:
        layer = node.operation
        if node.kwargs.get("training") is not False or not isinstance(layer, keras.Layer):
            continue
        default = inspect.signature(layer.call).parameters.get("training")
        # Recorded, too, where it is the default of the call.
        if default is None or default.default is not False:
            called.append(layer)
    for layer in called:
        if acts_in_training(layer):
            raise Untraceable(
                f"its call runs {layer.name!r} with training=False, which would not hold in the "
                "copy: freeze that layer instead (trainable = False), or leave the argument out"
            )


class _Run:
    """Calls a function on symbolic tensors."""

    def __init__(
        self,
        function: Callable,
        values: Sequence[Value],
        args: tuple,
        kwargs: dict[str, Any],
        owners: Sequence[keras.Layer],
        variables: list[keras.Variable],
    ):
        self.function, self.values, self.owners = function, values, owners
        self.args, self.kwargs, self.variables = args, kwargs, variables
        rng = np.random.default_rng(0)
        self.other_weights = [(v, _other_value(v, rng)) for v in variables]
        self.states = own_states(owners)
        # Functional models that the last run called with training=False.
        self.nested_in_inference: list[keras.Model] = []

    def at_one_size(self, modes: tuple) -> tuple[Graph, Graph]:
        """The graph in one mode, and that in another with other weights."""
        return self(modes[0]), self(modes[1], self.other_weights)

    def at_two_sizes(self, modes: tuple) -> tuple[Graph, Graph]:
        """Both graphs, each at a batch size of its own; the sizes of the first are unknown."""
        if not all(v.shape and v.shape[0] is None for v in self.values):
            raise Untraceable("its call reads the batch size of an input without one")
        first, others = (
            self(mode, weights, size)
            for mode, weights, size in zip(
                modes, ((), self.other_weights), batch_sizes.SIZES, strict=True
            )
        )
        if len(first.nodes) == len(others.nodes):
            batch_sizes.free_sizes(first, others)
        return first, others

    def with_other_states(self, mode: bool | None, batch_size: int | None) -> Graph:
        """The graph with other values of each `tf.Variable` that is no variable of Keras."""
        rng = np.random.default_rng(0)
        with kept_states(self.states):
            for state in self.states.values():
                state.assign(_other_value(state, rng))
            return self(mode, (), batch_size)

    def __call__(
        self, training: bool | None, weights: Sequence[tuple] = (), batch_size: int | None = None
    ) -> Graph:
        with kept_states(self.states) as changed:
            graph = self._run(training, weights, batch_size)
        if changed:
            raise Untraceable(
                f"its call updates a tf.Variable ({', '.join(changed)}), a state that Keras does "
                "not know"
            )
        return graph

    def _run(
        self, training: bool | None, weights: Sequence[tuple], batch_size: int | None
    ) -> Graph:
        shapes = {
            v: (batch_size or v.shape[0], *v.shape[1:]) if v.shape else () for v in self.values
        }
        feed = {v: keras.Input(batch_shape=shapes[v], dtype=v.spec.dtype) for v in self.values}
        args, kwargs = tree.map_structure(
            lambda leaf: feed[leaf] if isinstance(leaf, Value) else leaf, (self.args, self.kwargs)
        )
        if training is not None:
            kwargs = {**kwargs, "training": training}
        with kept_calls(self.owners), tf.GradientTape() as tape:
            with keras.StatelessScope(weights, collect_losses=True) as scope:
                try:
                    with translated():
                        flat = tree.flatten(self.function(*args, **kwargs))
                except (Untraceable, UnknownFunction) as error:
                    raise Untraceable(str(error)) from error
                except Exception as error:
                    raise Untraceable(_reason(error, self.function)) from error
            self._check_effects(scope, weights, tape)
            if not flat or not all(isinstance(y, keras.KerasTensor) for y in flat):
                raise Untraceable("its call returns what does not depend on its input")
            with deep_graph(flat):
                model = keras.Model(list(feed.values()), flat)
                self.nested_in_inference = [
                    called
                    for called, _, given, _ in calls(model)
                    if isinstance(called, keras.Model) and given.get("training") is False
                ]
                return Graph.from_model(model)

    def _check_effects(self, scope: Any, weights: Sequence[tuple], tape: tf.GradientTape) -> None:
        if scope.losses:
            raise Untraceable("its call adds losses")
        given = {id(v): value for v, value in weights}
        for v in self.variables:
            if scope.get_current_value(v) is not given.get(id(v)):
                if "seed_generator" in v.path:
                    raise Untraceable("its call draws random numbers")
                raise Untraceable(f"its call updates its state {v.name!r}")
        if set(scope.state_mapping) - set(given):
            # Keras' global generator of seeds, or another layer.
            raise Untraceable("its call draws random numbers or updates what is not its own")
        own = {id(v.value) for v in self.variables}
        foreign = [v.name for v in tape.watched_variables() if id(v) not in own]
        if foreign:
            raise Untraceable(f"its call reads {foreign[0]}, a weight of another layer")


def _sized(shape: tuple, batch_size: int | None) -> tuple:
    return shape if batch_size is None else (batch_size, *shape[1:])


def _other_value(variable: keras.Variable | tf.Variable, rng: np.random.Generator) -> tf.Tensor:
    """Values that no other variable has."""
    value = tf.convert_to_tensor(
        variable.value if isinstance(variable, keras.Variable) else variable
    )
    if not value.dtype.is_floating:
        return value if value.dtype in (tf.bool, tf.string) else value + tf.ones_like(value)
    noise = rng.uniform(0.5, 1.5, value.shape)
    return tf.cast(tf.abs(value) * 0.5, value.dtype) + tf.cast(noise, value.dtype)


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


def _merge(first: Graph, second: Graph, run: _Run) -> str | None:
    """Compares two graphs of one call; returns in words what differs.

    In `first`, arguments that are weights become `Weight`s, and `training` is left to Keras where
    it is the function's own.
    """
    if len(first.nodes) != len(second.nodes):
        return f"{len(first.nodes)} operations instead of {len(second.nodes)}"
    numbers: dict[Value, int] = {}
    for graph in (first, second):
        flat = [*graph.flat_inputs, *(v for node in graph.nodes for v in node.outputs)]
        numbers.update({value: i for i, value in enumerate(flat)})
    for one, other in zip(first.nodes, second.nodes, strict=True):
        difference = _merge_node(one, other, numbers, run)
        if difference is not None:
            return difference
    ends = [[numbers[v] for v in graph.flat_outputs] for graph in (first, second)]
    return None if ends[0] == ends[1] else "its outputs"


def _merge_node(one: Node, other: Node, numbers: dict[Value, int], run: _Run) -> str | None:
    kind = type(one.operation).__name__
    if one.operation is other.operation:
        pass
    elif getattr(one.operation, "variables", ()):
        return f"{one.name} instead of {other.name}"
    elif type(one.operation) is not type(other.operation):
        return f"{kind} instead of {type(other.operation).__name__}"
    elif _config(one.operation) != _config(other.operation) and not (
        batch_sizes.free_operation(one, other)
    ):
        return f"options of {kind}"
    kwargs, others = dict(one.kwargs), dict(other.kwargs)
    if (kwargs.get("training"), others.get("training")) == (False, True):
        del kwargs["training"], others["training"]
    try:
        tree.assert_same_structure((one.args, kwargs), (other.args, others))
    except ValueError:
        return f"arguments of {one.name}"
    differences: list[str] = []

    def merge(a: Any, b: Any) -> Any:
        if isinstance(a, Value) and isinstance(b, Value):
            if numbers[a] != numbers[b]:
                differences.append(f"inputs of {one.name}")
            return a
        rows = batch_sizes.equal_rows(a, b)
        if rows is not None:
            a, b = rows
        weight = _weight(a, b, run)
        if weight is None and not _equal(a, b):
            differences.append(f"a constant of {kind}")
        found = a if weight is None else weight
        return found if rows is None else batch_sizes.EqualRows(found)

    args, kwargs = tree.map_structure(merge, (one.args, kwargs), (other.args, others))
    if differences:
        return differences[0]
    one.args, one.kwargs = args, kwargs
    for leaf in tree.flatten((args, kwargs)):
        if isinstance(leaf, keras.KerasTensor):
            raise Untraceable("its call reads a tensor of the model that is not its argument")
        if isinstance(leaf, keras.Variable):
            raise Untraceable(f"its call reads {leaf.path}, a weight of another layer")
        if isinstance(leaf, tf.Variable):
            names = [name for name, state in run.states.items() if state is leaf]
            raise Untraceable(_READS.format(*names or [leaf.name]))
        if callable(leaf) and not isinstance(leaf, _DATA):
            raise Untraceable(f"its call holds control flow ({kind})")
    return None


# Arguments that hold no code, whatever their class defines.
_DATA = (Weight, batch_sizes.EqualRows, np.generic, tf.Tensor, tf.DType)


def _config(operation: Any) -> str:
    try:
        config = operation.get_config()
    except Exception as error:
        raise Untraceable(
            f"its call runs {type(operation).__name__} with arguments that cannot be saved"
        ) from error
    return repr({**config, "name": ""})


def _weight(a: Any, b: Any, run: _Run) -> Weight | None:
    """The variable that an argument is: itself, or its values in another order or shape."""
    if isinstance(a, keras.Variable):
        is_own = a is b and any(a is v for v in run.variables)
        return Weight(a, tuple(a.shape)) if is_own else None
    if not (tf.is_tensor(a) and tf.is_tensor(b)) or a.shape != b.shape:
        return None
    for variable, value in run.other_weights:
        is_size = value.dtype.is_floating and value.shape.num_elements() == tf.size(b)
        if not is_size:
            continue
        for axes in _orders(tuple(variable.shape), tuple(a.shape)):
            pairs = ((value, b), (variable.value, a))
            if all(np.array_equal(_ordered(x, axes), np.ravel(y)) for x, y in pairs):
                return Weight(variable, tuple(a.shape), axes)
    return None


def _orders(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[tuple[int, ...] | None]:
    """Orders of axes by which values of a shape may have got another, their own first."""
    yield None
    if 1 < len(shape) <= 4:
        for axes in itertools.permutations(range(len(shape))):
            if tuple(shape[axis] for axis in axes) == wanted:
                yield axes


def _ordered(values: Any, axes: tuple[int, ...] | None) -> np.ndarray:
    return np.ravel(values) if axes is None else np.ravel(np.transpose(values, axes))


def _equal(a: Any, b: Any) -> bool:
    if tf.is_tensor(a) or isinstance(a, np.ndarray):
        same = (tf.is_tensor(b) or isinstance(b, np.ndarray)) and np.shape(a) == np.shape(b)
        return bool(same and np.array_equal(np.asarray(a), np.asarray(b)))
    return a is b or (type(a) is type(b) and bool(a == b))
