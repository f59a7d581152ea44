"""The builder by which a decomposition inserts the parts of an operation into the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from tfcompress.model.compressed import Compressed, compress, compressed_class, is_compressed
from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.keras_private import padding_mask, set_padding_mask


@dataclasses.dataclass
class Decomposition:
    """What was taken apart.

    Attributes:
        parts: Name of the original → names of its parts.
        replaced: Original → the layer of the same weights and name that takes its place.
        one_range: Part → values that share its range. What it gives shares one at all its calls:
            the steps of a sequence.
        refused: Original → why it was left whole, and so in float.
    """

    parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    replaced: dict[Any, Any] = dataclasses.field(default_factory=dict)
    refused: dict[Any, str] = dataclasses.field(default_factory=dict)
    one_range: dict[Any, list[Value]] = dataclasses.field(default_factory=dict)
    _owners: dict[str, str] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def record(self, name: str, part: str) -> None:
        """Notes a part of `name`, or of what `name` is itself a part of."""
        owner = self._owners.get(name, name)
        parts = self.parts.setdefault(owner, [])
        if part not in parts:
            parts.append(part)
            self._owners.setdefault(part, owner)


class Builder:
    """Inserts the parts of one original before its node; a shared original shares its parts.

    Attributes:
        graph: The graph that is edited.
        result: What was done so far.
        node: The call that is being taken apart.
        is_int16: Whether activations have 16 bits.
    """

    node: Node

    def __init__(self, graph: Graph, result: Decomposition, is_int16: bool = False):
        self.graph, self.result, self.is_int16 = graph, result, is_int16
        # (original, suffix, variant) → part.
        self._made: dict[tuple[Any, str, str], Any] = {}
        # (original, index of a traced operation) → its description → part.
        self._traced: dict[tuple[Any, int], dict[tuple, Any]] = {}
        self._inserted: list[Node] = []
        self._taken = {operation.name for operation in graph.operations()}
        # Originals whose name a part has.
        self._left: set[Any] = set()

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
        for old, new in zip(node.outputs, results, strict=True):
            # What is taken apart later must know that Keras hands on a mask here.
            if padding_mask(new.spec) is None and padding_mask(old.spec) is not None:
                set_padding_mask(new.spec, padding_mask(old.spec))
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
            weights: Name of a variable of the part → the original's variable that it takes over,
                with the transforms (masks, codebooks) that are applied to that.
        """
        origin = self.node.operation

        taken = weights or {}

        def make_with_weights(name: str) -> keras.Layer:
            part = with_transforms(make(name), taken, origin)
            part.build(inputs[0].shape)
            carry_over(part, taken, origin)
            return part

        part = self.part(make_with_weights if taken else make, suffix, variant)
        argument = inputs[0] if len(inputs) == 1 else list(inputs)
        spec = inputs[0].spec if len(inputs) == 1 else [v.spec for v in inputs]
        return self.insert(part, (argument,), {}, [part.compute_output_spec(spec)])[0]

    def part(self, make: Callable[[str], Any], suffix: str, variant: str = "") -> Any:
        """The part of this suffix: made at the first call of the original, then shared."""
        origin = self.node.operation
        key = (origin, suffix, variant)
        if key not in self._made:
            is_variant = any(k[:2] == key[:2] for k in self._made)
            self._made[key] = make(self.name(suffix, variant if is_variant else ""))
            self.result.record(origin.name, self._made[key].name)
            if origin in self.result.one_range:
                self.result.one_range[self._made[key]] = []
        return self._made[key]

    def made(self, suffix: str) -> Any | None:
        """The part of this suffix, if the original has one."""
        return self._made.get((self.node.operation, suffix, ""))

    def shared(self, index: int, operation: Any) -> Any | None:
        """The part that another call of the original has for its traced operation of this index."""
        known = self._traced.get((self.node.operation, index), {})
        return known.get(_description(operation))

    def share(self, index: int, operation: Any, part: Any) -> None:
        """Keeps the part for a traced operation, for other calls of the original."""
        known = self._traced.setdefault((self.node.operation, index), {})
        known[_description(operation)] = part
        self.result.record(self.node.name, part.name)

    def name(self, suffix: str, variant: str = "") -> str:
        """The name of a new part: that of the original with `suffix`, unlike every other name."""
        origin = self.node.operation.name
        name = unique = "_".join(word for word in (origin, suffix, variant) if word)
        count = 0
        # The name of the original is free for one part.
        free = () if self.node.operation in self._left else (origin,)
        while unique in self._taken and unique not in free:
            count += 1
            unique = f"{name}_{count}"
        self._taken.add(unique)
        if unique == origin:
            self._left.add(self.node.operation)
        return unique

    def insert(
        self,
        operation: Any,
        args: tuple,
        kwargs: dict[str, Any],
        specs: Iterable[keras.KerasTensor],
    ) -> list[Value]:
        """Calls `operation` before the original; `specs` are those of its outputs, flat."""
        node = self.graph.insert_before(self.node, operation, args, kwargs, specs)
        self._inserted.append(node)
        return node.outputs


def _description(operation: Any) -> tuple:
    return type(operation), repr({**operation.get_config(), "name": ""})


def with_transforms(
    part: keras.Layer, weights: Mapping[str, keras.Variable], origin: keras.Layer
) -> keras.Layer:
    """`part`, or its compressed class where `origin` transforms a variable that it takes over."""
    chains = {}
    for name, variable in weights.items():
        chain = _chain(origin, variable)
        if chain:
            chains[name] = chain
    return compress(part, chains) if chains else part


def carry_over(
    part: keras.Layer, weights: Mapping[str, keras.Variable], origin: keras.Layer
) -> None:
    """Assigns the variables that a built part takes over, and the states of their transforms."""
    own = {v.name: v for v in part.variables if "transformed" not in v.path.split("/")}
    for name, variable in weights.items():
        own[name].assign(variable)
        if is_compressed(part):
            chain = part.transformed.chains.get(name, [])
            for source, target in zip(_chain(origin, variable), chain, strict=True):
                for old, new in zip(source.variables, target.variables, strict=True):
                    new.assign(old)


def untaken_transforms(origin: keras.Layer, weights: list[keras.Variable]) -> list[str]:
    """Names of the transformed variables of `origin` that are not among `weights`."""
    if not is_compressed(origin):
        return []
    taken = {v.name for v in weights}
    return [
        name for name, chain in origin.transformed.chains.items() if chain and name not in taken
    ]


def can_take_over(part: keras.Layer, weights: Mapping[str, keras.Variable], origin: Any) -> bool:
    """Whether `part` can hold the transforms of the variables that it takes over."""
    return compressed_class(part) is not None or not any(
        _chain(origin, variable) for variable in weights.values()
    )


def _chain(origin: keras.Layer | Compressed, variable: keras.Variable) -> list:
    return origin.transformed.chains.get(variable.name, []) if is_compressed(origin) else []
