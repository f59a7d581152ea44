"""Recurrent cells as dense layers, sums, gates and products, with one rounding each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from tfcompress.model.graph import Value
from tfcompress.model.keras_private import conv_lstm_cell
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.constants import times
from tfcompress.quantization.operators.steps import (
    Chunks,
    SamplesAsSteps,
    StateDropout,
    StepsAsSamples,
)


class CellSteps:
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

        cls, options = self.product(is_input)

        def make(name: str) -> keras.Layer:
            return cls(
                variable.shape[-1],
                **options,
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

    def product(self, is_input: bool) -> tuple[type[keras.Layer], dict[str, Any]]:
        """The layer that multiplies by a kernel, of the inputs or of the state, and its options."""
        return layers.Dense, {}

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
        raise NotImplementedError(
            f"Expected a cell that implements step(z, states). Received: {type(self).__name__}."
        )

    def one_range(self, *suffixes: str) -> None:
        """Makes the results of a part, at all steps, share one range."""
        for suffix in suffixes:
            part = self.b.made(suffix)
            if part is not None:
                self.b.result.one_range.setdefault(part, [])


class _LSTM(CellSteps):
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


class _ConvLSTM(_LSTM):
    """An LSTM whose products are convolutions."""

    def product(self, is_input: bool) -> tuple[type[keras.Layer], dict[str, Any]]:
        cell = self.cell
        cls = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[cell.rank - 1]
        if not is_input:
            return cls, {"kernel_size": cell.kernel_size, "padding": "same"}
        names = ("kernel_size", "strides", "padding", "dilation_rate")
        return cls, {name: getattr(cell, name) for name in names}

    def inputs(self, x: Value) -> Value:
        rate, steps = self.cell.dropout, x.shape[1]
        assert steps is not None
        if rate:
            shape = (None, 1, *x.shape[2:])
            x = self.b.call(
                lambda n: layers.Dropout(rate, shape, self.cell.seed, name=n), "dropout", x
            )
        samples = self.b.call(lambda n: StepsAsSamples(name=n), "samples", x)
        z = self.dense("input", "kernel", samples, 0)
        return self.b.call(lambda n: SamplesAsSteps(steps, name=n), "sequence", z)


class _GRU(CellSteps):
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


class _SimpleRNN(CellSteps):
    rounded = ("recurrent", "sum", "hidden")
    count = 1

    def step(self, z: Value, states: list[Value | None]) -> list[Value]:
        if states[0] is not None:
            h = self.state(states[0])
            z = self.merge(layers.Add, "sum", z, self.dense("recurrent", "recurrent_kernel", h))
        return [self.apply(self.cell.activation, "hidden", z)]


#: Class of a cell → its steps.
CELLS: dict[type, type[CellSteps]] = {
    layers.LSTMCell: _LSTM,
    layers.GRUCell: _GRU,
    layers.SimpleRNNCell: _SimpleRNN,
    conv_lstm_cell(): _ConvLSTM,
}
