"""Follows channels through a graph: which unit is at which place of every tensor and variable.

An axis of a tensor is either free of units (`None`: positions, time, the channels of an input) or
carries one label per index. A rule per operation (in `rules`) says how the axes of what comes
out follow from the axes of what goes in, and which axes of the layer's variables belong to them.
What no rule can follow is pinned, with the reason.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcompress.model.graph import Graph, Node, Value
from tfcompress.pruning.structure.units import Units

#: Labels along one axis; `None` for an axis that removal leaves alone.
Labels = np.ndarray | None
#: One entry per axis of a tensor, the batch included.
Axes = tuple[Labels, ...]


class Role(enum.Enum):
    """What a variable's axis does with channels."""

    OUTPUT = "makes"
    CHANNEL = "passes"
    INPUT = "reads"


@dataclasses.dataclass(eq=False)
class Member:
    """One axis of one variable that carries channels.

    Attributes:
        layer: The layer.
        variable: Its variable.
        axis: Index of the axis, not negative.
        labels: One label per index of the axis; `None` where some call gives it none.
        role: What the layer does with the channels.
        gates: How many blocks of the same channels lie along the axis, one after the other.
    """

    layer: keras.Layer
    variable: keras.Variable
    axis: int
    labels: Labels
    role: Role
    gates: int = 1


class Kept:
    """Which units are left.

    Args:
        units: The units.
        removed: Labels of the units that go.
    """

    def __init__(self, units: Units, removed: np.ndarray):
        self._units = units
        self._gone = np.zeros(len(units), bool)
        self._gone[units.find(np.asarray(removed, np.int64))] = True

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Whether each of these labels is left."""
        return ~self._gone[self._units.find(labels)]

    def count(self, labels: np.ndarray) -> int:
        return int(self.of(labels).sum())

    def cut(self, array: Any, labels: np.ndarray, axis: int = -1) -> np.ndarray:
        """`array` without the places along `axis` whose labels are gone."""
        return np.compress(self.of(labels), np.asarray(array), axis)


#: Given what is left, the changes of a configuration.
Resize = Callable[[Kept], dict[str, Any]]


class Tracer:
    """The state of one walk over a graph.

    Attributes:
        graph: The graph.
        units: The units found so far.
        axes: Tensor → its axes.
        members: The axes of variables, in the order of the graph.
        resizes: Operation → how its configuration follows from what is left.
        edits: Node → how its arguments do: `edit(args, kwargs, kept)` returns the new ones.
        inexact: `(labels, reason)` of channels whose removal changes other channels too.
        declined: Operations that have a rule, which does not cover how they are called.
        whole: Layer → why some of what it makes inside stays whole.
        sums: `(tensor, labels)` of channels that are summed without a kernel.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.units = Units()
        self.axes: dict[Value, Axes] = {}
        self.members: list[Member] = []
        self.resizes: dict[Any, Resize] = {}
        self.edits: dict[Node, Callable] = {}
        self.inexact: list[tuple[np.ndarray, str]] = []
        self.declined: list[Any] = []
        self.whole: dict[keras.Layer, str] = {}
        self.sums: list[tuple[Value, np.ndarray]] = []
        self._by_place: dict[tuple, Member] = {}
        self._outputs: dict[Any, np.ndarray] = {}
        self._first_call: dict[Any, list[Axes]] = {}

    # ---- what rules use -------------------------------------------------------------------------

    def of(self, value: Value) -> Axes:
        return self.axes[value]

    def made(self, layer: keras.Layer, count: int, key: str = "") -> np.ndarray:
        """The units of what a layer makes: new at its first call, the same at every other."""
        place = (id(layer), key)
        if place not in self._outputs:
            self._outputs[place] = self.units.new(count)
        return self._outputs[place]

    def member(
        self,
        layer: keras.Layer,
        name: Any,
        axis: int,
        labels: Labels,
        role: Role,
        gates: int = 1,
    ) -> None:
        """Notes that an axis of a variable carries these channels in this call.

        Args:
            layer: The layer.
            name: The variable, or its name (`"kernel"`, `"query/kernel"`). A layer without it (no
                bias) is fine.
            axis: The axis, which may be negative.
            labels: The labels, or `None`.
            role: What the layer does with them.
            gates: See `Member`.
        """
        variable = self.variable(layer, name) if isinstance(name, str) else name
        if variable is None:
            return
        axis %= len(variable.shape)
        place = (id(variable), axis)
        known = self._by_place.get(place)
        if known is None:
            self._by_place[place] = Member(layer, variable, axis, labels, role, gates)
            self.members.append(self._by_place[place])
            return
        known.labels = self.joined(known.labels, labels, f"the shared layer {layer.name!r}")

    def variable(self, layer: keras.Layer, name: str) -> keras.Variable | None:
        """The layer's variable of this name, as the layer (not a transform of it) owns it."""
        owner = getattr(layer, "cell", layer)
        depth = name.count("/") + 1
        for variable in owner.variables:
            path = variable.path.split("/")
            if "/".join(path[-depth:]) == name and "transformed" not in path:
                return variable
        return None

    def shape_of(self, layer: keras.Layer, name: str) -> tuple[int, ...]:
        """The shape of a variable that the layer has."""
        variable = self.variable(layer, name)
        if variable is None:
            raise KeyError(f"{layer.name!r} has no variable {name!r}")
        return tuple(variable.shape)

    def variable_labels(self, variable: keras.Variable, axis: int = 0) -> Labels:
        """The labels along an axis of a variable; `None` where it carries none."""
        member = self._by_place.get((id(variable), axis % len(variable.shape)))
        return None if member is None else member.labels

    def joined(self, first: Labels, second: Labels, place: str) -> Labels:
        """Joins the labels of one place reached on two ways; where one has none, pins the other."""
        if first is None and second is None:
            return None
        if first is None or second is None or len(first) != len(second):
            for labels in (first, second):
                self.pin(labels, f"meets channels that cannot be removed in {place}")
            return None
        self.units.join(first, second)
        return first

    def pin(self, labels: Labels, reason: str) -> None:
        if labels is not None:
            self.units.pin(labels, reason)

    def pin_all(self, axes: Axes, reason: str) -> None:
        for labels in axes:
            self.pin(labels, reason)

    def summed(self, value: Value, axis: int) -> None:
        """Says that the channels along an axis are added up, to which zeros add nothing."""
        labels = self.of(value)[axis]
        if labels is not None:
            self.sums.append((value, labels))

    def resize(self, operation: Any, changes: Resize) -> None:
        """Says how the configuration of an operation follows from what is left of some labels."""
        self.resizes[operation] = changes

    # ---- the walk -------------------------------------------------------------------------------

    def run(self, find_rule: Callable[[Any], Callable | None]) -> None:
        for value in self.graph.flat_inputs:
            self.axes[value] = (None,) * len(value.shape)
        for node in self.graph.nodes:
            results = self._follow(node, find_rule(node.operation))
            self._agree(node, results)
            for value, axes in zip(node.outputs, results, strict=True):
                self.axes[value] = axes
        for value in self.graph.flat_outputs:
            self.pin_all(self.axes[value], "is an output of the model")

    def _follow(self, node: Node, rule: Callable | None) -> list[Axes]:
        if rule is None:
            results = None
        else:
            results = rule(self, node)
        if results is None:
            if rule is not None:
                self.declined.append(node.operation)
            reason = f"channels cannot be followed through {describe(node.operation)}"
            for value in node.inputs:
                self.pin_all(self.of(value), reason)
            return [(None,) * len(v.shape) for v in node.outputs]
        return [results] if isinstance(results, tuple) else list(results)

    def _agree(self, node: Node, results: list[Axes]) -> None:
        """An operation with sizes in its configuration has one configuration for all its calls."""
        if node.operation not in self.resizes:
            return
        first = self._first_call.setdefault(node.operation, results)
        if first is results:
            return
        place = f"the calls of {node.name!r}"
        for mine, theirs in zip(results, first, strict=True):
            if len(mine) != len(theirs):
                # On inputs of two ranks: what both calls make is on the last axis.
                self.pin_all((*mine[:-1], *theirs[:-1]), f"goes through {place} of two ranks")
                mine, theirs = mine[-1:], theirs[-1:]
            for a, b in zip(mine, theirs, strict=True):
                self.joined(a, b, place)


def is_kernel(member: Member) -> bool:
    """Whether the variable is a matrix of weights: a GRU's bias has two axes too."""
    return len(member.variable.shape) > 1 and member.variable.name != "bias"


def describe(operation: Any) -> str:
    """`'name' (Class)`, with the class that the user knows."""
    return f"{operation.name!r} ({operation_class(operation).__name__})"


def operation_class(operation: Any) -> type:
    """The class whose `call` an operation runs: that of Keras for a generated subclass."""
    return getattr(operation, "keras_class", type(operation))
