"""The tensors of the plan, each marked in the TensorFlow graph by a fake-quant op of its own."""

from __future__ import annotations

import collections
import dataclasses
import weakref
from collections.abc import Hashable
from typing import Any

import tensorflow as tf

from tfcompress.export.flatbuffer.planned import Kind, PlannedTensor, mark_range

_MARK = "FakeQuantWithMinMaxArgs"
# What these give depends on the shape of their input alone, which is known.
_OF_SHAPES = ("OnesLike", "Rank", "Shape", "Size", "ZerosLike")


class Marks:
    """Numbers planned tensors in the order in which they are first marked.

    Attributes:
        planned: The planned tensors; the n-th has the number n.
    """

    def __init__(self):
        self.planned: list[PlannedTensor] = []
        self._numbers: dict[Hashable, int] = {}
        self._names: set[str] = set()
        # Name → how often it was taken.
        self._taken: collections.Counter[str] = collections.Counter()
        # Graph → name of an operation → whether it is a constant.
        self._constants: weakref.WeakKeyDictionary[Any, dict[str, bool]] = (
            weakref.WeakKeyDictionary()
        )

    def mark(self, key: Hashable, tensor: PlannedTensor, x: tf.Tensor) -> tf.Tensor:
        """Passes `x` through the fake-quant op that marks it; a graph may be traced twice.

        Args:
            key: What the tensor is in the model, the same whenever the graph is traced.
            tensor: What the plan says of it. Its name gets a number where another has it.
            x: The tensor in the graph that is traced.
        """
        if key not in self._numbers:
            self.planned.append(dataclasses.replace(tensor, name=self._unique(tensor.name)))
            self._numbers[key] = len(self.planned)
        low, high = mark_range(self._numbers[key])
        return tf.quantization.fake_quant_with_min_max_args(x, low, high)

    def is_constant(self, tensor: tf.Tensor) -> bool:
        """Whether the converter sees a constant: a tensor that no input's values go into.

        What is known of a graph is kept, so that each operation is looked at once.
        """
        known = self._constants.setdefault(tensor.graph, {})
        pending = [tensor.op]
        while pending:
            op = pending[-1]
            if op.name in known:
                pending.pop()
                continue
            if op.type == "Placeholder" or op.type in _OF_SHAPES:
                known[op.name] = op.type != "Placeholder"
                continue
            given = [each.op for each in op.inputs]
            unknown = [each for each in given if each.name not in known]
            if unknown:
                pending += unknown
            else:
                known[op.name] = all(known[each.name] for each in given)
        return known[tensor.op.name]

    def free_unread(self, outputs: list[tf.Tensor]) -> None:
        """Plans no codes for tensors that no output depends on, which the converter drops.

        Such is what a layer in float reads in training alone.

        Args:
            outputs: Those of the graph that is traced.
        """
        read, pending = set(), [tensor.op for tensor in outputs]
        while pending:
            op = pending.pop()
            if op.name not in read:
                read.add(op.name)
                pending += [tensor.op for tensor in op.inputs]
        marks = (op for op in outputs[0].graph.get_operations() if op.type == _MARK)
        lows = {op.get_attr("min"): op.name in read for op in marks}
        for number, tensor in enumerate(self.planned, 1):
            if not lows.get(mark_range(number)[0], True):
                self.planned[number - 1] = dataclasses.replace(tensor, kind=Kind.FLOAT)

    def _unique(self, name: str) -> str:
        """The name, with a number where another tensor has it."""
        unique = name
        while unique in self._names:
            self._taken[name] += 1
            unique = f"{name}_{self._taken[name]}"
        self._names.add(unique)
        return unique
