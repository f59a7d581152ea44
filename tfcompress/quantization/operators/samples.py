"""Operators along an axis: what crosses the axis of samples has no form in a file of batch 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from tfcompress.model.graph import Node

#: The reason.
SAMPLES = "it works across the samples of a batch, and a file runs one sample at a time"


def along_axis(*names: str, adds: bool = False) -> Callable[[Node], str | None]:
    """A `call_reason` for operators that work along axes.

    Args:
        *names: Attributes of the operation that hold an axis or several; `None` is all of them.
        adds: Whether the axis is one of the output, which the operator adds.
    """

    def reason(node: Node) -> str | None:
        rank = len((node.outputs if adds else node.inputs)[0].shape)
        axes = [axis for name in names for axis in _axes(getattr(node.operation, name), rank)]
        return SAMPLES if 0 in axes else samples_reason(node)

    return reason


def samples_reason(node: Node) -> str | None:
    """Why a call that changes shapes has no form of batch 1; `None` where it has one."""
    kept = [value.shape[:1] == node.inputs[0].shape[:1] for value in node.outputs]
    return None if all(kept) else SAMPLES


def reshape_reason(node: Node) -> str | None:
    """Why a reshape has no form of batch 1: samples have another size behind it."""
    before, after = (math.prod(n or 0 for n in v.shape[1:]) for v in node.inputs + node.outputs)
    if before and after and before != after:
        return SAMPLES
    return samples_reason(node)


def _axes(given: Any, rank: int) -> Iterable[int]:
    if given is None:
        return range(rank)
    axes = given if isinstance(given, (list, tuple)) else (given,)
    return [int(axis) % rank for axis in axes]
