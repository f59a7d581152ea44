"""Calls that read the batch size: `ops.shape(x)[0]` in a reshape, or of a class token.

Symbolic tensors of an unknown batch size give `None` there, with which most operations fail. Such
a call is followed at two batch sizes instead. Where its two graphs differ, the batch size was read:
sizes that differ are unknown, a reshape infers them, and an array with equal rows for every sample
is a `SampleConstant`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops, tree

from tfcompress.model.graph import Graph, Node, Value, producer
from tfcompress.model.keras_private import padding_mask, set_padding_mask

#: Two batch sizes that are sizes of hardly any other axis.
SIZES = (53, 59)

# Operations that broadcast an axis of 1.
_BROADCASTING = (
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power"),
    *("Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual", "Where"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class EqualRows:
    """An argument of a call with the same values for every sample.

    Attributes:
        row: They: an array of batch size 1, or what stands for one.
    """

    row: Any


@keras.saving.register_keras_serializable(package="tfcompress")
class SampleConstant(keras.layers.Layer):
    """The same values for every sample of the input's batch, such as a class token.

    Args:
        value_shape: Their shape, with a batch size of 1 or without one.
        value_regularizer: Of the weight that holds them.
        value_constraint: Of that weight.
    """

    def __init__(
        self,
        value_shape: Any,
        value_regularizer: Any = None,
        value_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.value_shape = tuple(value_shape)
        self.value_regularizer = keras.regularizers.get(value_regularizer)
        self.value_constraint = keras.constraints.get(value_constraint)

    def build(self, input_shape: Any) -> None:
        self.value = self.add_weight(
            name="value",
            shape=self.value_shape,
            initializer="zeros",
            regularizer=self.value_regularizer,
            constraint=self.value_constraint,
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        value = tf.cast(self.value, self.compute_dtype)
        return tf.broadcast_to(value, (tf.shape(inputs)[0], *self.row_shape))

    def row(self) -> np.ndarray:
        """The values of one sample, with a batch size of 1."""
        return np.asarray(self.value, np.float32).reshape((1, *self.row_shape))

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the values of one sample."""
        return self.value_shape[1:]

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], *self.row_shape)

    def stripped(self) -> list[Callable]:
        value = self.row()

        def constant(x: Any) -> Any:
            """Zeros of the batch size, and the values."""
            zeros = ops.zeros_like(ops.cast(x, self.compute_dtype))
            zeros = ops.sum(ops.reshape(zeros, (-1, math.prod(x.shape[1:]))), axis=1)
            return ops.add(ops.reshape(zeros, (-1, *(1 for _ in self.row_shape))), value)

        return [constant]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "value_shape": self.value_shape,
            "value_regularizer": keras.regularizers.serialize(self.value_regularizer),
            "value_constraint": keras.constraints.serialize(self.value_constraint),
        }


def needs_size(graph: Graph) -> bool:
    """Whether an operation of the graph was given `None` for the batch size."""
    return any(None in shape for node in graph.nodes if (shape := _shape_option(node)[1]))


def free_sizes(one: Graph, other: Graph) -> None:
    """Makes sizes of `one` unknown that differ in the graph of the other batch size, in place."""
    pairs = zip(_values(one), _values(other), strict=True)
    for value, second in pairs:
        if len(value.shape) != len(second.shape):
            continue
        shape = tuple(None if a != b else a for a, b in zip(value.shape, second.shape, strict=True))
        spec = value.spec
        value.spec = keras.KerasTensor(shape, dtype=spec.dtype, name=spec.name)
        if padding_mask(spec) is not None:
            set_padding_mask(value.spec, padding_mask(spec))


def free_operation(one: Node, other: Node) -> bool:
    """Replaces a reshape or broadcast to a given batch size by one for any, in `one`, in place.

    Args:
        one: The call, whose outputs have been through `free_sizes`.
        other: The same at another batch size.

    Returns:
        Whether the two differ in the batch size alone.
    """
    name, shape = _shape_option(one)
    _, second = _shape_option(other)
    if name is None or shape is None or second is None or len(shape) != len(second):
        return False
    wanted = one.output.shape
    if name == "newshape" and wanted.count(None) == 1:
        new = tuple(-1 if n is None else n for n in wanted)
        one.operation = _operation(lambda x: ops.reshape(x, new), one)
        return True
    given = one.inputs[0].shape if one.inputs else ()
    if name == "shape" and len(given) == len(wanted) and given[0] is None is wanted[0]:
        sizes = list(zip(wanted[1:], given[1:], strict=True))
        repeats = [1, *(n // m for n, m in sizes if n is not None and m is not None)]
        if len(repeats) < len(wanted):
            return False
        one.operation = _operation(lambda x: ops.tile(x, repeats), one)
        one.args, one.kwargs = (one.inputs[0],), {}
        return True
    return False


def equal_rows(a: Any, b: Any) -> tuple[Any, Any] | None:
    """The first rows of an array and of its twin at the other batch size, where all are equal."""
    if not all(tf.is_tensor(x) or isinstance(x, np.ndarray) for x in (a, b)):
        return None
    shapes = np.shape(a), np.shape(b)
    if (shapes[0][:1], shapes[1][:1]) != tuple((n,) for n in SIZES):
        return None
    is_equal = all(np.array_equal(np.asarray(x), np.repeat(x[:1], len(x), 0)) for x in (a, b))
    return (a[:1], b[:1]) if is_equal else None


def place_rows(graph: Graph) -> None:
    """Makes of `EqualRows` arguments what holds at any batch size, in place.

    What broadcasts reads the row itself. Any other call reads a `SampleConstant`, whose second
    argument is the row where that stands for a variable.
    """
    for node in list(graph.nodes):
        leaves = tree.flatten((node.args, node.kwargs))
        rows = {id(leaf): leaf.row for leaf in leaves if isinstance(leaf, EqualRows)}
        if not rows:
            continue
        if type(node.operation).__name__ not in _BROADCASTING or not node.inputs:
            source = (node.inputs or graph.flat_inputs)[0]
            rows = {key: _constant(graph, node, source, row) for key, row in rows.items()}
        args, kwargs = tree.map_structure(
            lambda leaf, rows=rows: rows.get(id(leaf), leaf), (node.args, node.kwargs)
        )
        node.args, node.kwargs = args, kwargs


def _constant(graph: Graph, before: Node, source: Value, row: Any) -> Value:
    layer = SampleConstant(tuple(row.shape))
    spec = keras.KerasTensor((source.shape[0], *row.shape[1:]), dtype=layer.compute_dtype)
    args: tuple = (source, row)
    if tf.is_tensor(row) or isinstance(row, np.ndarray):
        layer.trainable = False
        layer.build(source.shape)
        layer.value.assign(row)
        args = (source,)
    node = graph.insert_before(before, layer, args, {}, [spec])
    return node.output


def _values(graph: Graph) -> list[Value]:
    return [*graph.flat_inputs, *(v for node in graph.nodes for v in node.outputs)]


def _shape_option(node: Node) -> tuple[str | None, tuple | None]:
    """Name and value of the option that holds a shape, of `ops.reshape` and `ops.broadcast_to`."""
    name = {"Reshape": "newshape", "BroadcastTo": "shape"}.get(type(node.operation).__name__)
    given = getattr(node.operation, name, None) if name else None
    if isinstance(node.operation, keras.Layer) or not isinstance(given, (tuple, list)):
        return None, None
    return name, tuple(given)


def _operation(function: Any, node: Node) -> Any:
    """The operation of a `keras.ops` function."""
    x = keras.Input(batch_shape=node.inputs[0].shape, dtype=node.inputs[0].spec.dtype)
    found = producer(function(x))
    assert found is not None
    return found[0]
