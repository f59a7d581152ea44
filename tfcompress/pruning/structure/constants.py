"""Channels whose output is constant, and the biases that can take the constants over.

A channel whose weights are all zero still has its bias as output, or what a batch norm and an
activation make of it. Where it is a constant, it can be added to the biases of the layers that
read it, and the channel can be removed without any change of the outputs. Constants are found by
running every operation, in inference, on tensors in which constant channels hold their constants
and the others hold values of both signs and several sizes: an output that is the same everywhere
is a constant. A kernel must besides have no weight on any input that is not constant, because an
activation inside its layer may hide on a few examples what it lets through on data.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.model.graph import Node, Value
from tfcompress.pruning.structure.bias import (
    batch_norm_after,
    bias_response,
    effective_value,
    why_not_movable,
)
from tfcompress.pruning.structure.dependencies import Dependencies
from tfcompress.pruning.structure.removal import Additions
from tfcompress.pruning.structure.tracer import Member, Role, is_kernel, operation_class

# One example each: what is unknown is small and large, positive and negative.
_PROBES = (1.0, -1.0, 30.0, -30.0, 1000.0, -1000.0)


class Constants:
    """The constants of a model, by channel.

    Args:
        dependencies: Of the model.

    Attributes:
        possible: Whether any channel is silent.
        values: Tensor → what each place of its channel axis emits; NaN where that is unknown,
            infinite where it is no number at all. Empty where a size is not known: then only what
            no operation reads is dead.
        unknown: Names of operations that do not run on such tensors: nothing is known behind them.
    """

    def __init__(self, dependencies: Dependencies):
        self.dependencies = dependencies
        self.tracer = dependencies.tracer
        self.values: dict[Value, np.ndarray] = {}
        self.unknown: list[str] = []
        # Most models have none, and need not be run.
        self.possible = _can_be_constant(dependencies)
        if self.possible and self._sizes_known():
            self._find()

    def of(self, value: Value) -> np.ndarray | None:
        return self.values.get(value)

    def dead(self) -> np.ndarray:
        """Labels of the units whose removal changes no output, once their constants are moved."""
        units = self.tracer.units
        if not self.possible:
            return np.zeros(0, np.int64)
        alive = np.zeros(len(units), bool)
        for labels, counts in self._readings():
            alive[units.find(labels[counts])] = True
        inexact = [labels for labels, _ in self.tracer.inexact]
        for labels in inexact:
            alive[units.find(labels)] = True
        groups = [group.units for group in self.dependencies.groups]
        every = np.concatenate(groups) if groups else np.zeros(0, np.int64)
        return every[~alive[every]]

    def refused(self) -> dict[str, np.ndarray]:
        """Reason → labels of the units that emit a constant which cannot be moved exactly."""
        found: dict[str, list[np.ndarray]] = {}
        for node, labels, constants, rows in self._kernel_readings():
            reason = why_not_movable(node, self.tracer.graph)
            stuck = np.isfinite(constants) & (constants != 0) & rows
            if reason is not None and stuck.any():
                found.setdefault(reason, []).append(labels[stuck])
        return {reason: np.concatenate(parts) for reason, parts in found.items()}

    def move(self, removed: np.ndarray, additions: Additions) -> list[str]:
        """Adds the constants of the `removed` units to biases; returns the names of the layers."""
        kept = self.dependencies.removed(removed)
        names = []
        for node, labels, constants, rows in self._kernel_readings():
            gone = ~kept.of(labels) & np.isfinite(constants) & (constants != 0) & rows
            if not gone.any() or why_not_movable(node, self.tracer.graph) is not None:
                continue
            moved = bias_response(node.operation, np.where(gone, constants, 0.0))
            norm = batch_norm_after(node, self.tracer.graph)
            if not node.operation.use_bias and norm is not None:
                # What a batch norm subtracts is as good as a bias before it.
                additions.add(norm.moving_mean, -moved)
            else:
                additions.add_bias(node.operation, moved)
            names.append(node.name)
        return names

    # ---- readers --------------------------------------------------------------------------------

    def _kernel_readings(self):
        """Yields `(node, labels, constants, whether its weights are not all zero)`."""
        for member in self.tracer.members:
            if member.role is not Role.INPUT or member.labels is None:
                continue
            rows = _nonzero_rows(member)
            for node in self.tracer.graph.calls(member.layer):
                is_state = member.variable.name == "recurrent_kernel"
                value = node.output if is_state else node.inputs[0]
                constants = self.of(value) if len(node.inputs) == 1 else None
                if constants is None or len(constants) != len(member.labels):
                    constants = np.full(len(member.labels), np.nan)
                yield node, member.labels, constants, rows

    def _readings(self):
        """Yields `(labels, whether outputs depend on each)` of everything that mixes channels."""
        for node, labels, constants, rows in self._kernel_readings():
            stuck = why_not_movable(node, self.tracer.graph) is not None
            # A row of zeros ignores its input, unless that is not finite.
            is_read = rows & (np.isnan(constants) | (stuck & (constants != 0)))
            yield labels, is_read | np.isinf(constants)
        for value, labels in self.tracer.sums:
            constants = self.of(value)
            if constants is None or len(constants) != len(labels):
                constants = np.full(len(labels), np.nan)
            yield labels, constants != 0

    # ---- constants ------------------------------------------------------------------------------

    def _sizes_known(self) -> bool:
        values = [
            *self.tracer.graph.flat_inputs,
            *(v for n in self.tracer.graph.nodes for v in n.outputs),
        ]
        return all(None not in v.shape[1:] for v in values)

    def _find(self) -> None:
        rng = np.random.default_rng(0)
        for node in self.tracer.graph.nodes:
            if issubclass(operation_class(node.operation), layers.Embedding):
                # The outputs are rows of the table, whatever the inputs are.
                rows = node.operation(tf.range(node.operation.input_dim))
                self.values[node.output] = _uniform(np.asarray(rows, np.float64), 1)
                continue
            axes = {value: self._channel_axis(value) for value in node.outputs}
            if all(axis is None for axis in axes.values()):
                continue
            try:
                results = self._run(node, rng)
            except (tf.errors.OpError, ValueError, TypeError):
                # Such as a reshape that does not fit this number of examples.
                self.unknown.append(node.name)
                continue
            varying = self._varying(node)
            for value, result in zip(node.outputs, results, strict=True):
                axis = axes[value]
                if axis is None:
                    continue
                found = _uniform(result, axis)
                labels = self.tracer.of(value)[axis]
                if varying is not None and labels is not None:
                    found[varying[self.tracer.units.find(labels)]] = np.nan
                self.values[value] = found

    def _run(self, node: Node, rng: np.random.Generator) -> list[np.ndarray]:
        """The outputs for every probe, along the axis of examples."""
        # Where the number of examples is fixed, the probes come one after the other.
        is_fixed = any(value.shape[0] is not None for value in node.inputs)
        turns = []
        for turn in range(len(_PROBES) if is_fixed else 1):
            feed = {value: self._probe(value, turn, rng) for value in node.inputs}
            args, kwargs = keras.tree.map_structure(
                lambda leaf, feed=feed: feed[leaf] if isinstance(leaf, Value) else leaf,
                (node.args, node.kwargs),
            )
            results = keras.tree.flatten(node.operation(*args, **kwargs))
            turns.append([np.asarray(result, np.float64) for result in results])
        return [np.concatenate(results) for results in zip(*turns, strict=True)]

    def _varying(self, node: Node) -> np.ndarray | None:
        """By label, whether a kernel of the layer makes the unit from inputs that vary."""
        kernels: dict[int, list[tuple[Member, np.ndarray]]] = {}
        for member in self.tracer.members:
            if member.layer is node.operation and is_kernel(member) and member.labels is not None:
                kernels.setdefault(id(member.variable), []).append((member, member.labels))
        if not kernels:
            return None
        units, varying = self.tracer.units, np.zeros(len(self.tracer.units), bool)
        known = np.zeros(len(units), bool)
        constants, axis = self.of(node.inputs[0]), self._channel_axis(node.inputs[0])
        read = None if axis is None else self.tracer.of(node.inputs[0])[axis]
        if constants is not None and read is not None:
            labels = units.find(read)
            known[labels] = True
            known[labels[~np.isfinite(constants)]] = False
        for members in kernels.values():
            first = members[0][0]
            weights = np.abs(effective_value(first))
            # A recurrent kernel reads the state, not the input.
            is_state = first.variable.name == "recurrent_kernel"
            for member, labels in members:
                if member.role is not Role.OUTPUT and not is_state:
                    shape = [1] * weights.ndim
                    shape[member.axis] = -1
                    weights = weights * ~known[units.find(labels)].reshape(shape)
            for member, labels in members:
                if member.role is not Role.INPUT:
                    rows = np.moveaxis(weights, member.axis, 0).reshape(len(labels), -1)
                    varying[units.find(labels[rows.any(1)])] = True
        return varying

    def _channel_axis(self, value: Value) -> int | None:
        axes = [i for i, labels in enumerate(self.tracer.of(value)) if labels is not None]
        return axes[0] if len(axes) == 1 else None

    def _probe(self, value: Value, turn: int, rng: np.random.Generator) -> tf.Tensor:
        # All sizes but that of the batch are known.
        sizes = [size for size in value.shape[1:] if size is not None]
        shape = (value.shape[0] or len(_PROBES), *sizes)
        if not value.is_float:
            return tf.cast(tf.reshape(tf.range(int(np.prod(shape))) % 2, shape), value.spec.dtype)
        probes = np.resize(np.roll(_PROBES, -turn), shape[0])
        filled = probes.reshape(-1, *(1,) * (len(shape) - 1)) * rng.uniform(0.5, 2.0, shape)
        constants, axis = self.of(value), self._channel_axis(value)
        if constants is not None and axis is not None:
            along = [1] * len(shape)
            along[axis] = -1
            constants = constants.reshape(along)
            filled = np.where(np.isfinite(constants), constants, filled)
        return tf.cast(filled, value.spec.dtype)


def _can_be_constant(dependencies: Dependencies) -> bool:
    """Whether a kernel makes, or a batch norm passes, a channel of nothing but zeros."""
    for member in dependencies.tracer.members:
        if member.role is Role.INPUT or member.variable.name in ("bias", "beta", "moving_mean"):
            continue
        values = np.moveaxis(effective_value(member), member.axis, 0)
        if (np.abs(values).reshape(len(values), -1).max(1, initial=0.0) == 0).any():
            return True
    return False


def _nonzero_rows(member: Member) -> np.ndarray:
    values = np.moveaxis(effective_value(member), member.axis, 0)
    return np.abs(values).reshape(len(values), -1).max(1, initial=0.0) != 0


def _uniform(result: np.ndarray, axis: int) -> np.ndarray:
    rows = np.moveaxis(result, axis, 0).reshape(result.shape[axis], -1)
    low, high = rows.min(1), rows.max(1)
    with np.errstate(invalid="ignore"):
        same = (high - low) <= 1e-6 * np.abs(high)
    found = np.where(same & np.isfinite(high), high, np.nan)
    found[~np.isfinite(rows).any(1)] = np.inf
    return found
