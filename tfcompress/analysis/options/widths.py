"""Channels that go together: which of them go, and the model without them."""

from __future__ import annotations

import collections
from collections.abc import Mapping

import keras
import numpy as np

from tfcompress.pruning.structure import Group
from tfcompress.pruning.structure.costs import (
    macs_cost,
    parameter_cost,
    positions_carry_channels,
)
from tfcompress.pruning.structure.scores import Scoring
from tfcompress.pruning.structure.shrinking import Shrinking
from tfcompress.pruning.structure.tracer import Role
from tfcompress.pruning.structure.widths import Bounds

# How far below a target a ranking by size may end.
_TOLERANCE = 0.01


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

    def share(self, name: str, share: float) -> float:
        """The share that a group keeps where a share is asked for (see `kept`), in six digits."""
        return float(f"{self.kept(name, share) / len(self.groups[self.names.index(name)]):g}")

    def removed(self, shares: Mapping[str, float]) -> np.ndarray:
        """The units of least score, so many that each group keeps its share.

        Args:
            shares: Name of a group → the share of its channels that it keeps; 1 without a key.
        """
        return self._work.planner.lowest(self._scores, self._all_kept(shares))

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
        return macs_cost(self._work.dependencies)(self._all_kept(shares))

    def parameters(self, shares: Mapping[str, float]) -> float:
        """Weights of that model over those of the whole one."""
        return parameter_cost(self._work.dependencies)(self._all_kept(shares))

    def by_size(self, share: float, *, macs: bool) -> dict[str, float] | None:
        """Shares of all groups by one ranking of channels by size, as `shrink` has it.

        Args:
            share: Most that may be left of the whole model's multiply-accumulates or weights.
            macs: Whether it is one of multiply-accumulates.

        Returns:
            Name of a group → the share that it keeps, where that is less than 1; `None` where the
            target cannot be met, or the products follow more than the sizes of kernels.
        """
        if not self.groups or positions_carry_channels(self._work.dependencies):
            return None
        cost = (macs_cost if macs else parameter_cost)(self._work.dependencies)
        found = self._work.planner.reach(
            self._scores, cost, share - _TOLERANCE, tolerance=_TOLERANCE
        )
        if found.cost > share:
            return None
        left = self._work.planner.left(found.units)
        groups = zip(self.names, left, self.groups, strict=True)
        shares = {name: self.share(name, int(n) / len(group)) for name, n, group in groups}
        return {name: share for name, share in shares.items() if share < 1}

    def _all_kept(self, shares: Mapping[str, float]) -> np.ndarray:
        """How many channels each group keeps."""
        kept = [
            self.kept(name, shares[name]) if shares.get(name, 1.0) < 1 else len(group)
            for name, group in zip(self.names, self.groups, strict=True)
        ]
        return np.array(kept, np.int64)


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
