"""Repeated steps in a graph: calls of the same operations, each step on the results of the last.

A recurrent layer that was taken apart has the calls of every step in its graph. They need not be
traced one by one: what repeats is found here, and `looped` runs it as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from keras import tree

from tfcompress.model.graph import Graph, Node, Value

#: Fewest equal steps that are worth a loop.
LEAST_STEPS = 4


@dataclasses.dataclass
class Loop:
    """Steps of a graph that run the same calls.

    Attributes:
        body: The calls of the first of them, in running order.
        count: The number of steps.
        given: Value that a call of `body` reads → what the calls of every step read in its place.
        carried: Value that a call of `body` reads → result of a call of `body`, which the next
            step reads in its place.
        results: Result of a call of `body` → the same of every step, where one of them is read
            after the loop.
        nodes: The calls of all steps.
    """

    body: list[Node]
    count: int
    given: dict[Value, list[Value]]
    carried: dict[Value, Value]
    results: dict[Value, list[Value]]
    nodes: set[Node]


def find_loops(graph: Graph) -> list[Loop]:
    """The loops of a graph: behind each operation that says `gives_steps` of its outputs."""
    found: list[Loop] = []
    for node in graph.nodes:
        if getattr(node.operation, "gives_steps", False) and len(node.outputs) >= LEAST_STEPS:
            loop = _loop_behind(graph, node)
            if loop is not None and not any(loop.nodes & other.nodes for other in found):
                found.append(loop)
    return found


def in_running_order(graph: Graph, loops: Iterable[Loop]) -> list[Node | Loop]:
    """The calls of a graph, each loop as one of them."""
    loop_of = {node: loop for loop in loops for node in loop.nodes}
    order: list[Node | Loop] = []
    # Calls that wait for a value, and how many values a call or loop waits for.
    made = {value: node for node in graph.nodes for value in node.outputs}
    unit = lambda node: id(loop_of.get(node, node))  # noqa: E731
    units: dict[int, Node | Loop] = {}
    needs: dict[int, set[int]] = {}
    for node in graph.nodes:
        key = unit(node)
        units.setdefault(key, loop_of.get(node, node))
        before = {unit(made[value]) for value in node.inputs if value in made}
        needs.setdefault(key, set()).update(before - {key})
    done: set[int] = set()
    pending = list(units)
    while pending:
        ready, waiting = [], []
        for key in pending:
            if needs[key] <= done:
                done.add(key)
                ready.append(key)
            else:
                waiting.append(key)
        if not ready:
            raise AssertionError("a loop needs what is computed after it")
        order.extend(units[key] for key in ready)
        pending = waiting
    return order


def _loop_behind(graph: Graph, source: Node) -> Loop | None:
    """The loop over the outputs of a call; `None` where its steps differ."""
    steps = _by_step(graph, source)
    if any(not step for step in steps):
        return None
    signatures = _signatures(steps)
    middle = len(steps) // 2
    template = set(signatures[middle])
    if not template:
        return None
    first = middle
    while first > 0 and set(signatures[first - 1]) == template:
        first -= 1
    last = middle
    while last + 1 < len(steps) and set(signatures[last + 1]) == template:
        last += 1
    if last + 1 < len(steps) and template < set(signatures[last + 1]):
        # The last step is followed by the calls behind the sequence.
        last += 1
    alike = [{s: signatures[k][s] for s in template} for k in range(first, last + 1)]
    return _checked(graph, alike) if len(alike) >= LEAST_STEPS else None


def _by_step(graph: Graph, source: Node) -> list[list[Node]]:
    """The calls behind the outputs of `source`, by the step at which all that they need is there.

    Steps go from the first output to the last or, where the second reads the last, backwards.
    """
    reach: dict[Value, int] = {value: 1 << i for i, value in enumerate(source.outputs)}
    masks: dict[Node, int] = {}
    for node in graph.nodes:
        mask = 0
        for value in node.inputs:
            mask |= reach.get(value, 0)
        if mask and node is not source:
            masks[node] = mask
            reach.update((value, mask) for value in node.outputs)
    count = len(source.outputs)
    several = [mask for mask in masks.values() if mask & (mask - 1)]
    is_forward = bool(several) and bool(min(several, key=int.bit_count) & 1)
    steps: list[list[Node]] = [[] for _ in range(count)]
    for node, mask in masks.items():
        lowest = (mask & -mask).bit_length() - 1
        steps[mask.bit_length() - 1 if is_forward else count - 1 - lowest].append(node)
    return steps


def _signatures(steps: list[list[Node]]) -> list[dict[int, Node]]:
    """For each step: what describes a call within its step → the call.

    A step in which two calls have one description has none.
    """
    place = {node: k for k, nodes in enumerate(steps) for node in nodes}
    numbers: dict[Any, int] = {}
    number_of: dict[Node, int] = {}
    found: list[dict[int, Node]] = []
    for k, nodes in enumerate(steps):
        signatures: dict[int, Node] = {}
        is_distinct = True
        for node in nodes:

            def leaf_signature(leaf: Any, k: int = k) -> Any:
                if not isinstance(leaf, Value):
                    return ("", repr(leaf))
                maker = leaf.node
                if maker is None or maker not in place:
                    return ("given", leaf.shape)
                if place[maker] == k:
                    return ("same", number_of[maker], leaf.index)
                if place[maker] == k - 1:
                    return ("before", id(maker.operation), leaf.index)
                return ("other", id(leaf))

            kwargs = {n: v for n, v in node.kwargs.items() if n != "call_index"}
            leaves = tuple(leaf_signature(leaf) for leaf in tree.flatten((node.args, kwargs)))
            # A quantizer numbers those of its calls alone that round codes of another range.
            names = (*sorted(kwargs), "call_index" in node.kwargs)
            key = (id(node.operation), names, leaves)
            number = numbers.setdefault(key, len(numbers))
            number_of[node] = number
            if signatures.setdefault(number, node) is not node:
                is_distinct = False
        found.append(signatures if is_distinct else {})
    return found


def _checked(graph: Graph, alike: list[dict[int, Node]]) -> Loop | None:
    """The loop of steps whose calls have equal signatures; `None` where its links differ."""
    inside = {node for step in alike for node in step.values()}
    signature_of = {node: s for step in alike for s, node in step.items()}
    body = sorted(alike[0].values(), key=graph.nodes.index)
    given: dict[Value, list[Value]] = {}
    carried: dict[Value, Value] = {}
    for node in body:
        signature = signature_of[node]
        counterparts = [step[signature] for step in alike]
        for values in zip(*(counterpart.inputs for counterpart in counterparts), strict=True):
            first = values[0]
            if first.node in inside:
                continue
            makers = [value.node for value in values[1:]]
            if not any(maker in inside for maker in makers):
                if given.setdefault(first, list(values)) != list(values):
                    return None
                continue
            result = _carried_result(values, alike, signature_of)
            if result is None or carried.setdefault(first, result) is not result:
                return None
    if given.keys() & carried.keys():
        return None
    results: dict[Value, list[Value]] = {}
    for node in body:
        counterparts = [step[signature_of[node]] for step in alike]
        for value in node.outputs:
            all_steps = [c.outputs[value.index] for c in counterparts]
            if any(_is_read_outside(graph, v, inside) for v in all_steps):
                results[value] = all_steps
    return Loop(body, len(alike), given, carried, results, inside)


def _carried_result(
    values: tuple[Value, ...], alike: list[dict[int, Node]], signature_of: Mapping[Node, int]
) -> Value | None:
    """The result of the first step that the second reads, where every step reads that of the last.

    Args:
        values: What a call reads at every step.
        alike: The calls of every step by their signatures.
        signature_of: The signature of each of them.
    """
    maker = values[1].node
    if maker is None or maker not in signature_of:
        return None
    signature, index = signature_of[maker], values[1].index
    for step, value in zip(alike[:-1], values[1:], strict=True):
        if value.node is not step[signature] or value.index != index:
            return None
    return alike[0][signature].outputs[index]


def _is_read_outside(graph: Graph, value: Value, inside: set[Node]) -> bool:
    return graph.is_output(value) or any(n not in inside for n in graph.consumers(value))
