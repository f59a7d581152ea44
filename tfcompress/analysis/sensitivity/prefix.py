"""Runs the end of a model again and again on the activations that its beginning gave once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model import inference
from tfcompress.model.graph import Graph, Node, Value

# Numbers of all samples that one batch holds at a time while the model runs: 64 MB.
_HELD_VALUES = 16 * 2**20


class Prefix:
    """The tensors that the rest of a model reads, after the calls before a position.

    Only the tensors that are still read are held. What a change at one position costs is then
    found by running the calls behind it alone.

    Args:
        graph: The graph of the model.
        inputs: Arrays in the structure of its inputs.

    Attributes:
        position: Number of the calls that have run.
    """

    def __init__(self, graph: Graph, inputs: Any):
        self.graph = graph
        size = max(1, _HELD_VALUES // inference.most_values(graph))
        self._batches = [inference.feed(graph, part) for part in inference.split(inputs, size)]
        self._last_reader = inference.last_readers(graph)
        self.position = 0

    def advance(self, position: int) -> None:
        """Runs the calls before `position`, which may not lie before the present one."""
        for i in range(self.position, position):
            for values in self._batches:
                self._step(i, values, inference.call_in_inference)
        self.position = max(self.position, position)

    def outputs(self, call: inference.Call = inference.call_in_inference) -> list[np.ndarray]:
        """The flat outputs of the model, from the present position on.

        Args:
            call: What gives the result of a call.
        """
        parts = []
        for held in self._batches:
            values = dict(held)
            for i in range(self.position, len(self.graph.nodes)):
                self._step(i, values, call)
            parts.append([np.asarray(values[value]) for value in self.graph.flat_outputs])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _step(self, i: int, values: dict[Value, Any], call: inference.Call) -> None:
        node = self.graph.nodes[i]
        result = call(node, *inference.arguments(node, values))
        values.update(zip(node.outputs, tree.flatten(result), strict=True))
        for value in {*node.inputs, *node.outputs}:
            if self._last_reader[value] <= i:
                values.pop(value, None)


def rounding_inputs(
    nodes: Sequence[Node], round_input: Callable[[tf.Tensor], tf.Tensor]
) -> inference.Call:
    """A `call` for `Prefix.outputs` in which some calls read their first input rounded."""
    chosen = set(nodes)

    def call(node: Node, args: tuple, kwargs: dict) -> Any:
        if node in chosen and args and isinstance(args[0], tf.Tensor):
            args = (round_input(args[0]), *args[1:])
        return inference.call_in_inference(node, args, kwargs)

    return call
