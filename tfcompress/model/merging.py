"""Two graphs of one call: what they share, and in words what they do not.

The second was made with other weights, so that an argument of a call which follows a weight is
told from a constant. Both may be of different modes and batch sizes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model import batch_sizes
from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.own_states import own_states

#: Of a call that reads a `tf.Variable`, by name.
READS = "its call reads a tf.Variable ({}): make it a weight, by self.add_weight()"


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


class Readable:
    """The variables that a call may read, and other values for them.

    Args:
        owners: The layers that hold them.

    Attributes:
        variables: Those of Keras.
        other_weights: Each with values that no other has.
        states: Path → `tf.Variable` that Keras does not know.
    """

    def __init__(self, owners: Sequence[keras.Layer]):
        self.variables = list({id(v): v for owner in owners for v in owner.variables}.values())
        rng = np.random.default_rng(0)
        self.other_weights = [(v, _other_value(v, rng)) for v in self.variables]
        self.states = own_states(owners)

    def change_states(self) -> None:
        """Gives other values to the states."""
        rng = np.random.default_rng(0)
        for state in self.states.values():
            state.assign(_other_value(state, rng))


def _other_value(variable: keras.Variable | tf.Variable, rng: np.random.Generator) -> tf.Tensor:
    """Values that no other variable has."""
    value = tf.convert_to_tensor(
        variable.value if isinstance(variable, keras.Variable) else variable
    )
    if not value.dtype.is_floating:
        return value if value.dtype in (tf.bool, tf.string) else value + tf.ones_like(value)
    noise = rng.uniform(0.5, 1.5, value.shape)
    return tf.cast(tf.abs(value) * 0.5, value.dtype) + tf.cast(noise, value.dtype)


def merge(first: Graph, second: Graph, read: Readable) -> str | None:
    """Compares two graphs of one call; returns in words what differs.

    In `first`, arguments that are weights become `Weight`s, and `training` is left to Keras where
    it is that of the call.

    Args:
        first: The graph with the weights as they are.
        second: The graph with the other weights of `read`.
        read: What the call may read.
    """
    if len(first.nodes) != len(second.nodes):
        return f"{len(first.nodes)} operations instead of {len(second.nodes)}"
    numbers: dict[Value, int] = {}
    for graph in (first, second):
        flat = [*graph.flat_inputs, *(v for node in graph.nodes for v in node.outputs)]
        numbers.update({value: i for i, value in enumerate(flat)})
    for one, other in zip(first.nodes, second.nodes, strict=True):
        difference = _merge_node(one, other, numbers, read)
        if difference is not None:
            return difference
    ends = [[numbers[v] for v in graph.flat_outputs] for graph in (first, second)]
    return None if ends[0] == ends[1] else "its outputs"


def _merge_node(one: Node, other: Node, numbers: dict[Value, int], read: Readable) -> str | None:
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

    def merged(a: Any, b: Any) -> Any:
        if isinstance(a, Value) and isinstance(b, Value):
            if numbers[a] != numbers[b]:
                differences.append(f"inputs of {one.name}")
            return a
        rows = batch_sizes.equal_rows(a, b)
        if rows is not None:
            a, b = rows
        weight = _weight(a, b, read)
        if weight is None and not _equal(a, b):
            differences.append(f"a constant of {kind}")
        found = a if weight is None else weight
        return found if rows is None else batch_sizes.EqualRows(found)

    args, kwargs = tree.map_structure(merged, (one.args, kwargs), (other.args, others))
    if differences:
        return differences[0]
    one.args, one.kwargs = args, kwargs
    for leaf in tree.flatten((args, kwargs)):
        if isinstance(leaf, keras.KerasTensor):
            raise Untraceable("its call reads a tensor of the model that is not its argument")
        if isinstance(leaf, keras.Variable):
            raise Untraceable(f"its call reads {leaf.path}, a weight of another layer")
        if isinstance(leaf, tf.Variable):
            names = [name for name, state in read.states.items() if state is leaf]
            raise Untraceable(READS.format(*names or [leaf.name]))
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


def _weight(a: Any, b: Any, read: Readable) -> Weight | None:
    """The variable that an argument is: itself, or its values in another order or shape."""
    if isinstance(a, keras.Variable):
        is_own = a is b and any(a is v for v in read.variables)
        return Weight(a, tuple(a.shape)) if is_own else None
    if not (tf.is_tensor(a) and tf.is_tensor(b)) or a.shape != b.shape:
        return None
    for variable, value in read.other_weights:
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
