"""Channels that go together: which of them go, and the model without them."""

from __future__ import annotations

import collections
from collections.abc import Mapping

import keras
import numpy as np

from tfcompress.pruning.structure import Group
from tfcompress.pruning.structure.costs import macs_cost, positions_carry_channels
from tfcompress.pruning.structure.scores import Scoring
from tfcompress.pruning.structure.shrinking import Shrinking
from tfcompress.pruning.structure.tracer import Role
from tfcompress.pruning.structure.widths import Bounds


class Widths:
    """The groups of channels of a model, and their ranking.

    Args:
        model: A functional model.

    Attributes:
        names: Name of each group: the layers that make it, with a number where several groups
            have the same.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self._work = Shrinking(model, None, 0.0, None, None)
        self.groups = self._work.planner.groups
        self._scores = self._work.planner.scores(Scoring("magnitude"), self._work.gone)
        counts = collections.Counter(group.name for group in self.groups)
        seen: collections.Counter[str] = collections.Counter()
        self.names = []
        for group in self.groups:
            seen[group.name] += 1
            number = f" ({seen[group.name]})" if counts[group.name] > 1 else ""
            self.names.append(group.name + number)

    def kept(self, name: str, share: float) -> int:
        """How many channels a share is: a multiple of 8, or of 4 in layers below 32 channels."""
        group = self.groups[self.names.index(name)]
        width = len(group) * group.multiple
        step = 8 if width >= 32 else 4 if width >= 16 else 1
        step = max(1, step // group.multiple)
        return Bounds(len(group), 1, len(group), step).nearest(share * len(group))

    def removed(self, shares: Mapping[str, float]) -> np.ndarray:
        """The units of least score, so many that each group keeps its share.

        Args:
            shares: Name of a group → the share of its channels that it keeps; 1 without a key.
        """
        kept = [
            self.kept(name, shares[name]) if shares.get(name, 1.0) < 1 else len(group)
            for name, group in zip(self.names, self.groups, strict=True)
        ]
        return self._work.planner.lowest(self._scores, np.array(kept, np.int64))

    def build(self, shares: Mapping[str, float]) -> keras.Model:
        """The model in which each group keeps its share."""
        units = self.removed(shares)
        return self._work.build(units) if len(units) else self.model

    def macs(self, shares: Mapping[str, float]) -> float:
        """Multiply-accumulates of that model over those of the whole one.

        Raises:
            ValueError: A size of the inputs is not known.
        """
        if positions_carry_channels(self._work.dependencies):
            from tfcompress.model.macs import count_macs

            return count_macs(self.build(shares)) / count_macs(self.model)
        kept = [
            self.kept(name, shares[name]) if shares.get(name, 1.0) < 1 else len(group)
            for name, group in zip(self.names, self.groups, strict=True)
        ]
        return macs_cost(self._work.dependencies)(np.array(kept))


def reading_variables(group: Group, units: np.ndarray) -> dict[int, tuple]:
    """`id(variable)` → `(variable, its value with zeros where it reads units that go, layer)`."""
    gone = np.isin(group.units, units)
    found: dict[int, tuple] = {}
    for place in group.places:
        member = place.member
        if member.role is not Role.INPUT:
            continue
        variable = member.variable
        value = found[id(variable)][1] if id(variable) in found else np.array(variable)
        index: list = [slice(None)] * value.ndim
        index[member.axis] = place.indices[gone].ravel()
        value[tuple(index)] = 0
        found[id(variable)] = (variable, value, member.layer)
    return found
