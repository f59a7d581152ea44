"""The builder by which a decomposition inserts the parts of an operation into the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcompress.model.graph import Graph, Node, Value


@dataclasses.dataclass
class Decomposition:
    """What was taken apart.

    Attributes:
        parts: Name of the original → names of its parts.
        replaced: Original → the layer of the same weights and name that takes its place.
    """

    parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    replaced: dict[Any, Any] = dataclasses.field(default_factory=dict)
    _owners: dict[str, str] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def record(self, name: str, part: str) -> None:
        """Notes a part of `name`, or of what `name` is itself a part of."""
        owner = self._owners.get(name, name)
        parts = self.parts.setdefault(owner, [])
        if part not in parts:
            parts.append(part)
            self._owners.setdefault(part, owner)


class Builder:
    """Inserts the parts of one original before its node; a shared original shares its parts."""

    def __init__(self, graph: Graph, result: Decomposition):
        self.graph, self.result = graph, result
        # (id of the original, suffix, variant) → part.
        self._made: dict[tuple[int, str, str], Any] = {}
        self._inserted: list[Node] = []

    def apply(self, rule: Callable[[Builder, Node], Any], node: Node) -> list[Node] | None:
        """Replaces `node` by what `rule` makes of it.

        Returns:
            The calls that took its place, `None` where the rule leaves it whole.
        """
        self.node, self._inserted = node, []
        results = rule(self, node)
        if results is None:
            return None
        results = results if isinstance(results, list) else [results]
        self.graph.replace(node, results)
        return self._inserted

    def call(
        self,
        make: Callable[[str], Any],
        suffix: str,
        *inputs: Value,
        variant: str = "",
        weights: Mapping[str, keras.Variable] | None = None,
    ) -> Value:
        """Calls the part that `make(name)` creates on `inputs` (a list if there are several).

        Args:
            make: Creates the part.
            suffix: What its name adds to that of the original.
            *inputs: What it is called on.
            variant: What it depends on beside the original, where calls of a shared one differ.
            weights: Name of a variable of the part → the original's variable that it takes over.
        """
        argument = inputs[0] if len(inputs) == 1 else list(inputs)
        spec = inputs[0].spec if len(inputs) == 1 else [v.spec for v in inputs]
        part = self.part(make, suffix, variant)
        if weights and not part.built:
            part.build(inputs[0].shape)
            for variable in part.variables:
                if variable.name in weights:
                    variable.assign(weights[variable.name])
        return self.insert(part, (argument,), {}, [part.compute_output_spec(spec)])[0]

    def part(self, make: Callable[[str], Any], suffix: str, variant: str = "") -> Any:
        """The part of this suffix: made at the first call of the original, then shared."""
        origin = self.node.operation
        key = (id(origin), suffix, variant)
        if key not in self._made:
            name = f"{origin.name}_{suffix}" if suffix else origin.name
            if any(k[:2] == key[:2] for k in self._made):
                name = f"{name}_{variant}"
            self._made[key] = make(name)
            self.result.record(origin.name, self._made[key].name)
        return self._made[key]

    def insert(self, operation: Any, args: tuple, kwargs: dict[str, Any], specs) -> list[Value]:
        """Calls `operation` before the original; `specs` are those of its outputs, flat."""
        node = self.graph.insert_before(self.node, operation, args, kwargs, specs)
        self._inserted.append(node)
        return node.outputs
