"""How the scores of channels decide the widths of layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

#: Name → from the scores of several layers `(layers, channels)` to those of the group.
REDUCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda s: s.mean(0),
    "sum": lambda s: s.sum(0),
    "max": lambda s: s.max(0),
    "min": lambda s: s.min(0),
    "l2": lambda s: np.sqrt(np.square(s).sum(0)),
}


def _divided_by(measure: Callable) -> Callable[[np.ndarray], np.ndarray]:
    def normalize(scores):
        size = measure(np.abs(scores))
        return scores / size if size > 0 else scores

    return normalize


#: Name → from the scores of a group to comparable ones.
NORMALIZATIONS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: lambda s: s,
    "mean": _divided_by(np.mean),
    "max": _divided_by(np.max),
    "sum": _divided_by(np.sum),
    "l2": _divided_by(lambda s: np.sqrt(np.square(s).sum())),
    "standard": lambda s: (s - s.mean()) / (s.std() or 1.0),
}


@dataclasses.dataclass(frozen=True)
class WidthOptions:
    """How the scores of channels become the widths of layers, in `shrink` and `ChannelPruning`.

    Attributes:
        ranking: `"global"`: one ranking of all channels. `"uniform"`: every group loses the same
            fraction, but for steps of `round_to` that bring the whole nearer to the target.
        reduction: How the scores of layers whose channels go together become one: `"mean"`,
            `"sum"`, `"max"`, `"min"`, `"l2"`.
        normalization: How groups are made comparable for a global ranking: divided by their
            `"mean"`, `"max"`, `"sum"` or `"l2"`, `"standard"`, or `None`.
        min_kept: Fraction of its channels that every group keeps at least, in [0, 1], where there
            is a target. A layer is never emptied.
        tolerance: Distance from the target, in fractions of the model's cost, that is near enough.

    Raises:
        ValueError: An unknown name, or a number out of range.

    Example:
        >>> widths = tfc.WidthOptions(min_kept=0.2)    # for shrink(model, widths=widths)
        >>> widths.ranking
        'global'
    """

    ranking: Literal["global", "uniform"] = "global"
    reduction: str = "mean"
    normalization: str | None = "mean"
    min_kept: float = 0.1
    tolerance: float = 0.02

    def __post_init__(self):
        if self.ranking not in ("global", "uniform"):
            raise ValueError(f"`ranking` must be 'global' or 'uniform'. Received: {self.ranking!r}")
        for name, table in (("reduction", REDUCTIONS), ("normalization", NORMALIZATIONS)):
            if getattr(self, name) not in table:
                raise ValueError(
                    f"`{name}` must be one of {list(table)}. Received: {getattr(self, name)!r}"
                )
        if not 0.0 <= self.min_kept <= 1.0:
            raise ValueError(f"`min_kept` must lie in [0, 1]. Received: {self.min_kept}")
        if self.tolerance < 0:
            raise ValueError(f"`tolerance` must not be negative. Received: {self.tolerance}")


#: The default of `widths=`.
DEFAULT_WIDTHS = WidthOptions()
