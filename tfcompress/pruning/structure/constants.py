"""What a channel emits that no longer depends on the input, and whose bias can take that over.

A channel whose weights are all zero still emits its bias, or what a batch norm and an activation
make of it. Where it is a constant, the layers that read it can have it added to their biases, and
then the channel can go without any change of the outputs. Constants are found by running every
operation, in inference, on tensors in which known channels hold their constants and the others
hold values of both signs and several sizes: what comes out the same everywhere is a constant.
What a kernel makes must besides have no weight on anything that is not known, for an activation
inside its layer may hide from a few examples what it lets through on data.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.model.graph import Node, Value
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
            nobody reads is dead.
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
        every = [g.units for g in self.dependencies.groups]
        every = np.concatenate(every) if every else np.zeros(0, np.int64)
        return every[~alive[every]]

    def refused(self) -> dict[str, np.ndarray]:
        """Reason → labels of the units that emit a constant which cannot be moved exactly."""
        found: dict[str, list[np.ndarray]] = {}
        for node, labels, constants, rows in self._kernel_readings():
            reason = _why_not(node, self.tracer.graph)
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
            if not gone.any() or _why_not(node, self.tracer.graph) is not None:
                continue
            moved = _response(node.operation, np.where(gone, constants, 0.0))
            norm = _batch_norm_after(node, self.tracer.graph)
            if not node.operation.use_bias and norm is not None:
                # What a batch norm subtracts is as good as a bias before it.
                additions.add(norm.moving_mean, -moved)
            else:
                additions.add_bias(node.operation, moved)
            names.append(node.name)
        return names

    # ---- who reads ------------------------------------------------------------------------------

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
            stuck = _why_not(node, self.tracer.graph) is not None
            # A row of zeros hears nothing, but for what is no number.
            is_read = rows & (np.isnan(constants) | (stuck & (constants != 0)))
            yield labels, is_read | np.isinf(constants)
        for value, labels in self.tracer.sums:
            constants = self.of(value)
            if constants is None or len(constants) != len(labels):
                constants = np.full(len(labels), np.nan)
            yield labels, constants != 0

    # ---- what is emitted ------------------------------------------------------------------------

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
                # Whatever comes in, out come rows of the table.
                rows = node.operation(tf.range(node.operation.input_dim))
                self.values[node.output] = _uniform(np.asarray(rows, np.float64), 1)
                continue
            axes = {value: self._channel_axis(value) for value in node.outputs}
            if all(axis is None for axis in axes.values()):
                continue
            try:
                results = self._run(node, rng)
            except (tf.errors.OpError, ValueError, TypeError):
                # A reshape that takes so many examples apart, say.
                self.unknown.append(node.name)
                continue
            heard = self._heard(node)
            for value, result in zip(node.outputs, results, strict=True):
                if axes[value] is not None:
                    found = _uniform(result, axes[value])
                    if heard is not None:
                        labels = self.tracer.of(value)[axes[value]]
                        found[heard[self.tracer.units.find(labels)]] = np.nan
                    self.values[value] = found

    def _run(self, node: Node, rng) -> list[np.ndarray]:
        """What comes out for every probe, examples one below the other."""
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

    def _heard(self, node: Node) -> np.ndarray | None:
        """By label, whether a kernel of the layer makes the unit from what is not known."""
        kernels: dict[int, list[Member]] = {}
        for member in self.tracer.members:
            if member.layer is node.operation and is_kernel(member) and member.labels is not None:
                kernels.setdefault(id(member.variable), []).append(member)
        if not kernels:
            return None
        units, heard = self.tracer.units, np.zeros(len(self.tracer.units), bool)
        known = np.zeros(len(units), bool)
        constants, axis = self.of(node.inputs[0]), self._channel_axis(node.inputs[0])
        if constants is not None:
            labels = units.find(self.tracer.of(node.inputs[0])[axis])
            known[labels] = True
            known[labels[~np.isfinite(constants)]] = False
        for members in kernels.values():
            weights = np.abs(_effective(members[0]))
            # The state that a recurrent kernel reads is not what comes in.
            is_state = members[0].variable.name == "recurrent_kernel"
            for member in members:
                if member.role is not Role.OUTPUT and not is_state:
                    shape = [1] * weights.ndim
                    shape[member.axis] = -1
                    weights = weights * ~known[units.find(member.labels)].reshape(shape)
            for member in members:
                if member.role is not Role.INPUT:
                    rows = np.moveaxis(weights, member.axis, 0).reshape(len(member.labels), -1)
                    heard[units.find(member.labels[rows.any(1)])] = True
        return heard

    def _channel_axis(self, value: Value) -> int | None:
        axes = [i for i, labels in enumerate(self.tracer.of(value)) if labels is not None]
        return axes[0] if len(axes) == 1 else None

    def _probe(self, value: Value, turn: int, rng) -> tf.Tensor:
        shape = (value.shape[0] or len(_PROBES), *value.shape[1:])
        if not value.is_float:
            return tf.cast(tf.reshape(tf.range(int(np.prod(shape))) % 2, shape), value.spec.dtype)
        sizes = np.resize(np.roll(_PROBES, -turn), shape[0])
        filled = sizes.reshape(-1, *(1,) * (len(shape) - 1)) * rng.uniform(0.5, 2.0, shape)
        constants = self.of(value)
        if constants is not None:
            along = [1] * len(shape)
            along[self._channel_axis(value)] = -1
            constants = constants.reshape(along)
            filled = np.where(np.isfinite(constants), constants, filled)
        return tf.cast(filled, value.spec.dtype)


def _can_be_constant(dependencies: Dependencies) -> bool:
    """Whether a kernel makes, or a batch norm passes, a channel of nothing but zeros."""
    for member in dependencies.tracer.members:
        if member.role is Role.INPUT or member.variable.name in ("bias", "beta", "moving_mean"):
            continue
        values = np.moveaxis(_effective(member), member.axis, 0)
        if (np.abs(values).reshape(len(values), -1).max(1, initial=0.0) == 0).any():
            return True
    return False


def _effective(member) -> np.ndarray:
    """The variable as a forward pass reads it: behind the transforms of a compressed layer."""
    layer, name = member.layer, member.variable.name
    if hasattr(layer, "effective_weights") and name in layer.transformed.chains:
        return np.asarray(layer.effective_weights()[name])
    return np.asarray(member.variable)


def _nonzero_rows(member) -> np.ndarray:
    values = np.moveaxis(_effective(member), member.axis, 0)
    return np.abs(values).reshape(len(values), -1).max(1, initial=0.0) != 0


def _uniform(result: np.ndarray, axis: int) -> np.ndarray:
    rows = np.moveaxis(result, axis, 0).reshape(result.shape[axis], -1)
    low, high = rows.min(1), rows.max(1)
    with np.errstate(invalid="ignore"):
        same = (high - low) <= 1e-6 * np.abs(high)
    found = np.where(same & np.isfinite(high), high, np.nan)
    found[~np.isfinite(rows).any(1)] = np.inf
    return found


_SLIDING = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


def _why_not(node: Node, graph) -> str | None:
    """Why the call's bias cannot take over a constant of its input; `None` where it can."""
    layer, cls = node.operation, operation_class(node.operation)
    name = layer.name
    if len(graph.calls(layer)) > 1:
        return f"emits a constant that the shared layer {name!r} reads"
    if cls in _SLIDING:
        if layer.groups > 1:
            return f"emits a constant that the grouped convolution {name!r} reads"
        if layer.padding != "valid" and any(size > 1 for size in layer.kernel_size):
            return (
                f"emits a constant that {name!r} reads with padding {layer.padding!r}, where it "
                "is missing at the border"
            )
    elif cls is not layers.Dense:
        return f"emits a constant that {name!r} ({cls.__name__}) reads"
    is_fixed = hasattr(layer, "transformed") and not layer.use_bias
    if is_fixed and _batch_norm_after(node, graph) is None:
        return f"emits a constant that {name!r} reads, which is compressed and has no bias"
    return None


def _batch_norm_after(node: Node, graph):
    after = graph.sole_consumer(node.output)
    is_norm = after is not None and operation_class(after.operation) is layers.BatchNormalization
    activation = getattr(node.operation, "activation", None)
    if not is_norm or len(graph.calls(after.operation)) > 1:
        return None
    return after.operation if activation in (None, keras.activations.linear) else None


def _response(layer, constants: np.ndarray) -> np.ndarray:
    """What constants in the input add to each output channel before the activation."""
    kernel = layer.kernel
    if hasattr(layer, "effective_weights") and "kernel" in layer.transformed.chains:
        kernel = layer.effective_weights()["kernel"]
    kernel = np.asarray(kernel, np.float64)
    kernel = kernel.reshape(-1, *kernel.shape[-2:]).sum(0)
    return (constants @ kernel).astype(np.float32)
