"""Recurrent layers, unrolled: every step of a sequence rounds to the same ranges.

LiteRT's own recurrent operators compute with ranges of their own, so a layer becomes its steps.
The products with the inputs of all steps are one dense layer, those with the state one per step.
Steps share layers and quantizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, tree

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder, untaken_transforms
from tfcompress.quantization.operators.constants import times
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import OperatorSpec, Role, register
from tfcompress.quantization.operators.tracing import traced

#: Steps of the longest sequence that is unrolled: the file grows with each, and so does the time
#: to trace a train step.
MAX_STEPS = 64

# --- operators of the steps ----------------------------------------------------------------------


class _Part(layers.Layer):
    """Mixin of layers that only move values and give a mask to nobody."""

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None


@keras.saving.register_keras_serializable(package="tfcompress")
class Steps(_Part):
    """The steps (batch, features) of a sequence (batch, steps, features), as a list."""

    channels_like = layers.Identity

    def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        return tf.unstack(inputs, axis=1)

    def compute_output_shape(self, input_shape: Any) -> list[tuple[int | None, ...]]:
        return [(input_shape[0], *input_shape[2:])] * input_shape[1]

    def stripped(self) -> list:
        return [lambda x: keras.ops.unstack(x, axis=1)]


@keras.saving.register_keras_serializable(package="tfcompress")
class Chunks(_Part):
    """Equal parts of the last axis, as a list."""

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = int(count)

    def call(self, inputs: tf.Tensor) -> list[tf.Tensor]:
        return tf.split(inputs, self.count, axis=-1)

    def compute_output_shape(self, input_shape: Any) -> list[tuple[int | None, ...]]:
        return [(*input_shape[:-1], input_shape[-1] // self.count)] * self.count

    def stripped(self) -> list:
        return [lambda x: keras.ops.split(x, self.count, axis=-1)]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "count": self.count}


@keras.saving.register_keras_serializable(package="tfcompress")
class StackedSteps(_Part):
    """A sequence of its steps, each (batch, features)."""

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        return tf.stack(inputs, axis=1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        first = tuple(input_shape[0])
        return (first[0], len(input_shape), *first[1:])

    def stripped(self) -> list:
        return [lambda steps: keras.ops.stack(steps, axis=1)]


@keras.saving.register_keras_serializable(package="tfcompress")
class StateDropout(_Part):
    """Drops the same units of a state at every step of a sequence, in training.

    Args:
        rate: Share of the units.
        seed: Of the random numbers.
    """

    channels_like = layers.Identity

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.seed = float(rate), seed

    def build(self, input_shape: Any) -> None:
        self.sequence = self.add_weight(
            name="sequence", shape=(), initializer="zeros", dtype="int32", trainable=False
        )
        self.built = True

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, first: bool = False
    ) -> tf.Tensor:
        if not training:
            return inputs
        if first:
            self.sequence.assign_add(1)
        seed = tf.stack([self.sequence.value, self.seed or 0])
        drawn = tf.random.stateless_uniform(tf.shape(inputs), seed)
        kept = tf.cast(drawn >= self.rate, inputs.dtype)
        return inputs * kept / (1.0 - self.rate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def stripped(self) -> list:
        return []

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


def _lower_steps(call: LoweredCall, x: tf.Tensor) -> list[tf.Tensor]:
    """Slices of a matrix, which XNNPACK takes."""
    size = int(np.prod(x.shape[2:]))
    rows = tf.reshape(x, (x.shape[1], size))
    shape = (1, *x.shape[2:])
    steps = [tf.slice(rows, [t, 0], [1, size]) for t in range(x.shape[1])]
    return [step if len(shape) == 2 else tf.reshape(step, shape) for step in steps]


def _lower_chunks(call: LoweredCall, x: tf.Tensor) -> list[tf.Tensor]:
    """Slices."""
    size = x.shape[-1] // call.operation.count
    rank = len(x.shape)
    begins = [[0] * (rank - 1) + [i * size] for i in range(call.operation.count)]
    return [tf.slice(x, begin, [*x.shape[:-1], size]) for begin in begins]


def _lower_sequence(call: LoweredCall, steps: list[tf.Tensor]) -> tf.Tensor:
    """One concatenation."""
    shape = steps[0].shape
    return tf.reshape(tf.concat(steps, 0), (1, len(steps), *shape[1:]))


register(Steps, spec=OperatorSpec(role=Role.MOVE, lower=_lower_steps))
register(Chunks, spec=OperatorSpec(role=Role.MOVE, lower=_lower_chunks))
register(StackedSteps, spec=OperatorSpec(role=Role.JOIN, lower=_lower_sequence))
register(StateDropout, spec=OperatorSpec(role=Role.MOVE))

# --- cells ---------------------------------------------------------------------------------------


class _Cell:
    """The steps of one recurrent layer, as calls of shared parts.

    Args:
        b: The builder.
        layer: The layer or cell that is taken apart.
        cell: The cell.
    """

    #: Parts whose results, at all steps, share one range.
    rounded: tuple[str, ...] = ()
    #: Number of states.
    count = 1

    def __init__(self, b: Builder, layer: keras.Layer, cell: keras.Layer):
        self.b, self.layer, self.cell = b, layer, cell
        self._dropped = 0

    def dense(self, suffix: str, kernel: str, x: Value, bias: int | None = None) -> Value:
        """x · kernel, plus the bias or its row `bias`."""
        cell, is_input = self.cell, kernel == "kernel"
        variable = getattr(cell, kernel)
        # A cell's bias has one row, or one for the inputs and one for the state.
        has_bias = cell.use_bias and bias is not None
        prefix = "kernel" if is_input else "recurrent"

        def make(name: str) -> layers.Dense:
            return layers.Dense(
                variable.shape[-1],
                use_bias=has_bias,
                kernel_regularizer=getattr(cell, f"{prefix}_regularizer"),
                kernel_constraint=getattr(cell, f"{prefix}_constraint"),
                bias_regularizer=cell.bias_regularizer if has_bias else None,
                bias_constraint=cell.bias_constraint if has_bias else None,
                name=name,
                dtype=self.layer.dtype_policy,
                trainable=self.layer.trainable,
            )

        result = self.b.call(make, suffix, x, weights={"kernel": variable})
        if has_bias:
            values = cell.bias.numpy()
            assert result.node is not None
            result.node.operation.bias.assign(values if values.ndim == 1 else values[bias])
        return result

    def apply(self, function: Callable, suffix: str, x: Value) -> Value:
        policy = self.layer.dtype_policy
        return self.b.call(lambda n: layers.Activation(function, name=n, dtype=policy), suffix, x)

    def merge(self, cls: type[keras.Layer], suffix: str, *values: Value) -> Value:
        return self.b.call(lambda n: cls(name=n), suffix, *values)

    def chunks(self, suffix: str, x: Value, count: int) -> list[Value]:
        part = self.b.part(lambda n: Chunks(count, name=n), suffix)
        return self.b.insert(part, (x,), {}, part.compute_output_spec(x.spec))

    def state(self, h: Value) -> Value:
        """The state as the recurrent kernel reads it."""
        rate = self.cell.recurrent_dropout
        if not rate:
            return h
        part = self.b.part(
            lambda n: StateDropout(rate, self.cell.seed, name=n), "recurrent_dropout"
        )
        kwargs = {"first": self._dropped == 0}
        self._dropped += 1
        return self.b.insert(part, (h,), kwargs, [part.compute_output_spec(h.spec)])[0]

    def inputs(self, x: Value) -> Value:
        """The products of all inputs with the kernel."""
        rate = self.cell.dropout
        if rate:
            cls = layers.SpatialDropout1D if len(x.shape) == 3 else layers.Dropout
            x = self.b.call(lambda n: cls(rate, seed=self.cell.seed, name=n), "dropout", x)
        return self.dense("input", "kernel", x, 0)

    def step(self, z: Value, states: list[Value | None]) -> list[Value]:
        """The states after a step, the output first, by the products with its input."""
        raise NotImplementedError

    def one_range(self, *suffixes: str) -> None:
        """Makes the results of a part, at all steps, share one range."""
        for suffix in suffixes:
            part = self.b.made(suffix)
            if part is not None:
                self.b.result.one_range.setdefault(part, [])


class _LSTM(_Cell):
    rounded = (
        *("recurrent", "sum", "input_gate", "forget_gate", "candidate", "output_gate"),
        *("new", "kept", "carry", "squashed", "hidden"),
    )
    count = 2

    def step(self, z: Value, states: list[Value | None]) -> list[Value]:
        cell, (h, c) = self.cell, states
        if h is not None:
            z = self.merge(
                layers.Add, "sum", z, self.dense("recurrent", "recurrent_kernel", self.state(h))
            )
        i, f, g, o = self.chunks("gates", z, 4)
        new = self.merge(
            layers.Multiply,
            "new",
            self.apply(cell.recurrent_activation, "input_gate", i),
            self.apply(cell.activation, "candidate", g),
        )
        if c is not None:
            kept = self.merge(
                layers.Multiply,
                "kept",
                self.apply(cell.recurrent_activation, "forget_gate", f),
                c,
            )
            new = self.merge(layers.Add, "carry", kept, new)
        squashed = self.apply(cell.activation, "squashed", new)
        gate = self.apply(cell.recurrent_activation, "output_gate", o)
        return [self.merge(layers.Multiply, "hidden", gate, squashed), new]


class _GRU(_Cell):
    rounded = (
        *("recurrent", "update_sum", "reset_sum", "candidate_sum", "update", "reset"),
        *("candidate", "reset_state", "difference", "step", "hidden", "zero"),
    )
    count = 1

    def step(self, z: Value, states: list[Value | None]) -> list[Value]:
        """h + z·(…): h' = candidate + update · (h − candidate)."""
        cell, h = self.cell, states[0]
        x_update, x_reset, x_candidate = self.chunks("gates", z, 3)
        if h is None:
            # The bias of the state counts at the first step, too.
            h = self.b.call(times(0.0), "zero", x_update)
        products = self.dense("recurrent", "recurrent_kernel", self.state(h), 1)
        h_update, h_reset, h_candidate = self.chunks("state_gates", products, 3)
        update = self.apply(
            cell.recurrent_activation,
            "update",
            self.merge(layers.Add, "update_sum", x_update, h_update),
        )
        reset = self.apply(
            cell.recurrent_activation,
            "reset",
            self.merge(layers.Add, "reset_sum", x_reset, h_reset),
        )
        state = self.merge(layers.Multiply, "reset_state", reset, h_candidate)
        candidate = self.apply(
            cell.activation,
            "candidate",
            self.merge(layers.Add, "candidate_sum", x_candidate, state),
        )
        difference = self.merge(layers.Subtract, "difference", h, candidate)
        step = self.merge(layers.Multiply, "step", update, difference)
        return [self.merge(layers.Add, "hidden", candidate, step)]


class _SimpleRNN(_Cell):
    rounded = ("recurrent", "sum", "hidden")
    count = 1

    def step(self, z: Value, states: list[Value | None]) -> list[Value]:
        if states[0] is not None:
            h = self.state(states[0])
            z = self.merge(layers.Add, "sum", z, self.dense("recurrent", "recurrent_kernel", h))
        return [self.apply(self.cell.activation, "hidden", z)]


_CELLS: dict[type, type[_Cell]] = {
    layers.LSTMCell: _LSTM,
    layers.GRUCell: _GRU,
    layers.SimpleRNNCell: _SimpleRNN,
}

# --- layers --------------------------------------------------------------------------------------


def _refusal(layer: keras.Layer, cell: keras.Layer) -> str | None:
    """Why the steps of a layer cannot be in the file; `None` where they can."""
    if type(cell) not in _CELLS:
        return f"the steps of a {type(cell).__name__} are not known"
    if getattr(layer, "stateful", False):
        return (
            "it keeps its state between calls, which a file does not; make the state an input and "
            "an output of the model"
        )
    if isinstance(cell, layers.GRUCell) and not cell.reset_after:
        return "its reset gate acts before the product (reset_after=False)"
    left = untaken_transforms(layer, [cell.kernel, cell.recurrent_kernel])
    return f"its {', '.join(left)} is masked" if left else None


def _layer(b: Builder, node: Node) -> list[Value] | None:
    """Its steps: dense layers, sums, gates and products of shared ranges."""
    layer, cell = node.operation, node.operation.cell
    arguments = dict(zip(("sequences", "initial_state", "mask"), node.args, strict=False))
    arguments.update(node.kwargs)
    x, steps = node.inputs[0], node.inputs[0].shape[1]
    reason = _refusal(layer, cell)
    if arguments.get("mask") is not None:
        reason = reason or "a mask of its steps is not known before the sequence is"
    if steps is None:
        reason = reason or "the number of its steps is not known"
    elif steps > MAX_STEPS:
        reason = reason or f"it has {steps} steps; sequences of up to {MAX_STEPS} are unrolled"
    if reason is not None:
        b.result.refused[layer] = reason
        return None
    steps_of = _CELLS[type(cell)](b, layer, cell)
    given = [v for v in tree.flatten(arguments.get("initial_state")) if isinstance(v, Value)]
    states: list[Value | None] = [*given] or [None] * steps_of.count
    part = b.part(lambda n: Steps(name=n), "steps")
    z = steps_of.inputs(x)
    inputs = b.insert(part, (z,), {}, part.compute_output_spec(z.spec))
    outputs: list[Value] = []
    for step in reversed(inputs) if layer.go_backwards else inputs:
        states = [*steps_of.step(step, states)]
        outputs.append(states[0])  # type: ignore[arg-type]
    _share(b, steps_of, given)
    result = [outputs[-1]]
    if layer.return_sequences:
        result = [b.call(lambda n: StackedSteps(name=n), "", *outputs)]
    return [*result, *states] if layer.return_state else result  # type: ignore[list-item]


def _single_step(b: Builder, node: Node) -> list[Value] | None:
    """One step; a state that is an input of the model shares the range of the state it becomes."""
    cell = node.operation
    reason = _refusal(cell, cell)
    if reason is not None:
        b.result.refused[cell] = reason
        return None
    steps_of = _CELLS[type(cell)](b, cell, cell)
    x, *states = node.inputs
    new = steps_of.step(steps_of.inputs(x), [*states])
    _share(b, steps_of, states)
    return [new[0], *new][: len(node.outputs)]


def _share(b: Builder, steps: Any, given: Sequence[Value]) -> None:
    """One range for each part of the steps, and for a state that comes from an input."""
    steps.one_range(*steps.rounded)
    names = ("hidden", "carry")
    for value, name in zip(given, names, strict=False):
        part = b.made(name)
        if part is not None and value.node is None:
            b.result.one_range[part].append(value)
    zero = b.made("zero")
    if zero is not None:
        # It is 0 in any range.
        b.result.one_range[b.made("hidden")].extend(n.output for n in b.graph.calls(zero))


def _time_distributed(layer: layers.TimeDistributed, inputs: Any, **kwargs: Any) -> Any:
    """The layer on the steps as if they were a batch."""
    inner, shape = layer.layer, inputs.shape
    if isinstance(inner, layers.Dense):
        return inner(inputs)
    y = inner(keras.ops.reshape(inputs, (-1, *shape[2:])))
    return keras.ops.reshape(y, (-1, shape[1], *y.shape[1:]))


def _bidirectional(layer: layers.Bidirectional, sequences: Any, **kwargs: Any) -> Any:
    """Both layers, the results of the second turned around, and what merges them."""
    forward = layer.forward_layer(sequences)
    backward = layer.backward_layer(sequences)
    if layer.return_sequences:
        backward = backward[:, ::-1]
    if layer.merge_mode is None:
        return [forward, backward]
    merges = {
        "sum": layers.Add,
        "ave": layers.Average,
        "mul": layers.Multiply,
        "concat": layers.Concatenate,
    }
    return merges[layer.merge_mode](name="merged")([forward, backward])


def _time_distributed_layer(b: Builder, node: Node) -> list[Value] | None:
    """The layer, on the steps as if they were a batch."""
    mask = node.kwargs.get("mask")
    if mask is not None or None in node.inputs[0].shape[1:]:
        why = "a mask of its steps" if mask is not None else "a size that is not known"
        b.result.refused[node.operation] = f"its input has {why}"
        return None
    return traced(_time_distributed)(b, node)


def _bidirectional_layer(b: Builder, node: Node) -> list[Value] | None:
    """Two recurrent layers and what merges their results."""
    layer = node.operation
    reason = None
    if node.kwargs.get("mask") is not None:
        reason = "a mask of its steps is not known before the sequence is"
    elif layer.return_state or len(node.inputs) > 1:
        reason = "its states are inputs or outputs"
    if reason is not None:
        b.result.refused[layer] = reason
        return None
    return traced(_bidirectional)(b, node)


register(layers.LSTM, layers.GRU, layers.SimpleRNN, spec=OperatorSpec(decompose=_layer))
register(layers.RNN, spec=OperatorSpec(decompose=_layer))
register(*_CELLS, spec=OperatorSpec(decompose=_single_step))
register(layers.TimeDistributed, spec=OperatorSpec(decompose=_time_distributed_layer))
register(layers.Bidirectional, spec=OperatorSpec(decompose=_bidirectional_layer))
