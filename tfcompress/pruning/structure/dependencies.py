"""The dependency graph of a model: groups of channels that can be removed, and what that takes.

After DepGraph (Fang et al. 2023, https://arxiv.org/abs/2301.12900): which output channels of which
layers must go together, and which variables lose what when they do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np

from tfcompress.model.graph import Graph, Node
from tfcompress.model.paths import layer_paths
from tfcompress.pruning.structure.rules import (  # noqa: F401
    elementwise,
    kernels,
    reshape,
    shapes,
)
from tfcompress.pruning.structure.rules.registry import find_rule
from tfcompress.pruning.structure.tracer import (
    Kept,
    Member,
    Role,
    Tracer,
    describe,
    is_kernel,
    operation_class,
)
from tfcompress.tables import Printable, render_table


@dataclasses.dataclass(eq=False)
class Place:
    """The indices of a group's channels along one axis of one variable.

    Attributes:
        member: The axis.
        indices: `(channels, n)` indices along it: removing channel i takes the i-th row away.
    """

    member: Member
    indices: np.ndarray


@dataclasses.dataclass(eq=False)
class Group:
    """Channels that can be removed one by one, each with everything that depends on it.

    All channels of a group are in the same variables, so that the group has one size, to which
    rounding and bounds apply. Print it to see what removing a channel takes.

    Attributes:
        units: One label per channel, in the order of the first layer that makes them.
        places: The axes of variables that lose something with each channel.
        calls: The calls whose outputs carry the channels.
        inexact: What a removal changes beside the channels themselves; `None` for nothing.
    """

    units: np.ndarray
    places: list[Place]
    calls: list[Node]
    inexact: str | None = None

    def __len__(self) -> int:
        return len(self.units)

    @property
    def makers(self) -> list[Place]:
        """The kernels that make the channels."""
        return [p for p in self.places if _makes(p.member)]

    @property
    def name(self) -> str:
        """The names of the layers that make the channels."""
        return " + ".join(dict.fromkeys(p.member.layer.name for p in self.makers))

    @property
    def multiple(self) -> int:
        """How many channels of a layer go with one channel of the group, at least."""
        return min(p.indices.shape[1] // p.member.gates for p in self.makers)

    def __str__(self) -> str:
        rows = []
        for place in self.places:
            member, each = place.member, place.indices.shape[1]
            slices = ["j" if i == member.axis else ":" for i in range(len(member.variable.shape))]
            rows.append(
                (
                    member.layer.name,
                    operation_class(member.layer).__name__,
                    member.role.value,
                    f"{_variable_name(member)}[{', '.join(slices)}]",
                    0 if member.labels is None else len(member.labels),
                    f"{each} indices" if each > 1 else f"j = {_ranges(place.indices[:, 0])}",
                )
            )
        columns = ("layer", "class", "what it does", "loses", "of", "for each channel")
        table = render_table(f"{len(self)} channels of {self.name}", columns, rows)
        passed = ", ".join(dict.fromkeys(n.name for n in self.calls if not _has_variables(n)))
        if passed:
            table += f"passes: {passed}\n"
        if self.inexact:
            table += f"inexact: {self.inexact}\n"
        return table


class Dependencies(Printable):
    """Which channels of a model can be removed, and what must go with them.

    Args:
        model: A built Sequential or Functional model; nested ones are looked into.

    Attributes:
        groups: The groups that can be removed, in the order of the graph.
        kept: Path of a layer (its name, where no other has it) → why (some of) the channels that
            it makes stay.

    Raises:
        TypeError: Not a Keras model.
        ValueError: A subclassed or unbuilt model.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.graph = Graph.from_model(model)
        self._paths = layer_paths(model)
        self.tracer = Tracer(self.graph)
        self.tracer.run(find_rule)
        self.regroup()

    def regroup(self) -> None:
        """Makes the groups anew, after units were pinned."""
        self.groups = list(self._make_groups())
        self.kept = self._make_kept()

    def removed(self, units: np.ndarray) -> Kept:
        """What is left without these units."""
        return Kept(self.tracer.units, units)

    def removed_channels(self, units: np.ndarray) -> dict[str, tuple[int, ...]]:
        """Path of a layer (its name, where no other has it) → the output channels that go."""
        kept, found = self.removed(units), {}
        for member in self.tracer.members:
            if _makes(member) and member.labels is not None:
                each = len(member.labels) // member.gates
                gone = np.flatnonzero(~kept.of(member.labels[:each]))
                if gone.size:
                    found[self._path(member.layer)] = tuple(gone.tolist())
        return found

    def units_of(self, channels: Mapping[str, Sequence[int]]) -> np.ndarray:
        """The units of output channels: the inverse of `removed_channels`."""
        found = [
            self.tracer.units.find(member.labels[list(channels[self._path(member.layer)])])
            for member in self.tracer.members
            if _makes(member) and member.labels is not None and self._path(member.layer) in channels
        ]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def _path(self, layer: keras.Layer) -> str:
        return self._paths.get(id(layer), layer.name)

    def pin(self, units: np.ndarray, reason: str) -> None:
        """Keeps units whole; call `regroup` afterwards."""
        self.tracer.units.pin(units, reason)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __str__(self) -> str:
        text = "\n".join(map(str, self.groups))
        rows = list(self.kept.items())
        return text + ("\n" + render_table("Kept whole", ("layer", "why"), rows) if rows else "")

    def _make_groups(self) -> Iterator[Group]:
        units = self.tracer.units
        # Unit → its members: (number of the member, how often).
        members_of: dict[int, list[tuple[int, int]]] = {}
        roots: list[np.ndarray | None] = []
        for number, member in enumerate(self.tracer.members):
            labels = None if member.labels is None else units.find(member.labels)
            roots.append(labels)
            if labels is None:
                continue
            for unit, count in zip(*np.unique(labels, return_counts=True), strict=True):
                members_of.setdefault(int(unit), []).append((number, int(count)))
        alike: dict[tuple, list[int]] = {}
        for unit in sorted(members_of):
            made = any(_makes(self.tracer.members[n]) for n, _ in members_of[unit])
            if made and units.reason(unit) is None:
                alike.setdefault(tuple(members_of[unit]), []).append(unit)
        inexact = {
            int(unit): reason
            for labels, reason in self.tracer.inexact
            for unit in np.unique(units.find(labels))
        }
        calls = self._calls_of_units()
        for signature, members in alike.items():
            group = np.array(members)
            places = [Place(self.tracer.members[n], _rows(roots[n], group)) for n, _ in signature]
            reason = next((inexact[unit] for unit in members if unit in inexact), None)
            passed = dict.fromkeys(node for unit in members for node in calls.get(unit, []))
            order = [node for node in self.graph.nodes if node in passed]
            yield Group(group, places, order, reason)

    def _calls_of_units(self) -> dict[int, list[Node]]:
        found: dict[int, list[Node]] = {}
        for node in self.graph.nodes:
            labels = [a for v in node.outputs for a in self.tracer.of(v) if a is not None]
            if labels:
                for unit in np.unique(self.tracer.units.find(np.concatenate(labels))):
                    found.setdefault(int(unit), []).append(node)
        return found

    def _make_kept(self) -> dict[str, str]:
        units = self.tracer.units
        kept: dict[str, str] = {}
        for member in self.tracer.members:
            if member.labels is None or member.role is not Role.OUTPUT:
                continue
            reasons = [units.reason(u) for u in np.unique(units.find(member.labels))]
            found = [r for r in reasons if r is not None]
            if found:
                part = "" if len(found) == len(reasons) else f"{len(found)} of {len(reasons)}: "
                kept.setdefault(self._path(member.layer), part + found[0])
        for node in self.graph.nodes:
            # A layer without a rule may make channels too.
            operation = node.operation
            if find_rule(operation) is None and _has_variables(node):
                kept.setdefault(self._path(operation), f"no rule for {describe(operation)}")
        for operation in self.tracer.declined:
            if getattr(operation, "weights", None):
                why = f"the rule for {describe(operation)} does not cover this call of it"
                kept.setdefault(self._path(operation), why)
        for layer, why in self.tracer.whole.items():
            kept.setdefault(self._path(layer), why)
        return kept


def _makes(member: Member) -> bool:
    return member.role is Role.OUTPUT and is_kernel(member)


def _has_variables(node: Node) -> bool:
    return bool(getattr(node.operation, "weights", None))


def _rows(roots: np.ndarray, units: np.ndarray) -> np.ndarray:
    """`(len(units), n)` indices of each unit; all have the same number of indices."""
    order = np.argsort(roots, kind="stable")
    ordered = roots[order]
    first = np.searchsorted(ordered, units, "left")
    count = np.searchsorted(ordered, units[0], "right") - first[0]
    return order[first[:, None] + np.arange(count)]


def _variable_name(member: Member) -> str:
    parts = member.variable.path.split("/")
    name = member.layer.name
    return "/".join(parts[parts.index(name) + 1 :]) if name in parts else parts[-1]


def _ranges(indices: np.ndarray) -> str:
    """`"0–15"` for consecutive indices, else the first few."""
    if len(indices) == 1:
        return str(indices[0])
    if (np.diff(indices) == 1).all():
        return f"{indices[0]}–{indices[-1]}"
    shown = ", ".join(map(str, indices[:4]))
    return shown + (", …" if len(indices) > 4 else "")
