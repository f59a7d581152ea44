"""The tensors of the plan, each marked in the TensorFlow graph by a fake-quant op of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import tensorflow as tf

from tfcompress.export.flatbuffer.planned import PlannedTensor, mark_range

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

    def mark(self, key: Hashable, tensor: PlannedTensor, x: tf.Tensor) -> tf.Tensor:
        """Passes `x` through the fake-quant op that marks it; a graph may be traced twice.

        Args:
            key: What the tensor is in the model, the same whenever the graph is traced.
            tensor: What the plan says of it. Its name gets a number where another has it.
            x: The tensor in the graph that is traced.
        """
        if key not in self._numbers:
            tensor = _renamed(tensor, self._names)
            self._names.add(tensor.name)
            self.planned.append(tensor)
            self._numbers[key] = len(self.planned)
        low, high = mark_range(self._numbers[key])
        return tf.quantization.fake_quant_with_min_max_args(x, low, high)


def is_constant(tensor: tf.Tensor) -> bool:
    """Whether the converter sees a constant: a tensor that no input's values go into."""
    pending, seen = [tensor.op], set()
    while pending:
        op = pending.pop()
        if op.name in seen or op.type in _OF_SHAPES:
            continue
        seen.add(op.name)
        if op.type == "Placeholder":
            return False
        pending.extend(given.op for given in op.inputs)
    return True


def _renamed(tensor: PlannedTensor, names: set[str]) -> PlannedTensor:
    name, count = tensor.name, 0
    while name in names:
        count += 1
        name = f"{tensor.name}_{count}"
    return dataclasses.replace(tensor, name=name)
