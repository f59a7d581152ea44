"""Scores of the channels of each group, higher for what should stay.

A criterion of weights is summed over the weights that make a channel; a criterion of channels is
computed for each layer of the group. Both are in `tfcompress.pruning.criteria`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.model.kernels import compressible_kernels
from tfcompress.pruning.criteria.registry import Criterion, get_criterion
from tfcompress.pruning.criteria.scoring import compute_scores
from tfcompress.pruning.criteria.statistics import Loss, Statistics, batches
from tfcompress.pruning.structure.activations import ChannelActivations
from tfcompress.pruning.structure.dependencies import Dependencies, Group

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
class Scoring:
    """How groups are scored.

    Attributes:
        criterion: Name in the registry of criteria, a function, or a `Criterion`.
        reduction: How the scores of several layers of a group become one: a key of `REDUCTIONS`.
        normalization: How groups are made comparable: a key of `NORMALIZATIONS`.
        data: Batches, for criteria that need gradients or activations.
        loss: `loss(model, x, y, sample_weight)`, for gradients; by default the compiled one.
        num_batches: How many batches are looked at.
        batch_size: Where `data` is a tuple of arrays.
        seed: For criteria that are random.
        trained: The model whose loss it is, where that is not the one that loses channels: a
            distiller around it.

    Raises:
        ValueError: A name is not known, data is missing, or the criterion adds up over training.
    """

    criterion: Any = "magnitude"
    reduction: str = "mean"
    normalization: str | None = "mean"
    data: Any = None
    loss: Loss | None = None
    num_batches: int = 4
    batch_size: int = 128
    seed: int = 0
    trained: keras.Model | None = None

    def __post_init__(self):
        for name, table in (("reduction", REDUCTIONS), ("normalization", NORMALIZATIONS)):
            if getattr(self, name) not in table:
                raise ValueError(
                    f"`{name}` must be one of {list(table)}. Received: {getattr(self, name)!r}"
                )
        found = get_criterion(self.criterion)
        if found.accumulate:
            raise ValueError(
                f"The criterion {found.name!r} adds up over training steps, and channels are "
                "scored at one moment. Choose another, such as 'taylor'."
            )
        if found.needs_data and self.data is None:
            raise ValueError(
                f"The criterion {self.criterion!r} looks at batches. Expected `data` as a tuple "
                "(x, y) of arrays or a tf.data.Dataset. Received: data=None"
            )

    def scores(self, dependencies: Dependencies) -> list[np.ndarray | None]:
        """One array per group, one score per channel; `None` where the criterion says nothing."""
        raw = self._raw(dependencies)
        reduce, normalize = REDUCTIONS[self.reduction], NORMALIZATIONS[self.normalization]
        return [None if r is None else normalize(reduce(np.stack(r))) for r in raw]

    def _raw(self, dependencies: Dependencies) -> list[list[np.ndarray] | None]:
        """Per group, the scores by each of its layers."""
        criterion, groups = get_criterion(self.criterion), dependencies.groups
        if not criterion.scores_channels:
            return self._by_weights(criterion, dependencies)
        (needed,) = criterion.parameters
        if needed in _INPUTS_OF_GROUPS:
            inputs = _INPUTS_OF_GROUPS[needed]
            return [_nothing([_scored(criterion, g, a) for a in inputs(g)]) for g in groups]
        seen = ChannelActivations(dependencies)
        for batch in batches(self.data, self.num_batches, self.batch_size):
            seen.observe(batch[0])
        measure = getattr(seen, needed)
        return [[_scored(criterion, g, measure(g))] if seen.sees(g) else None for g in groups]

    def _by_weights(
        self, criterion: Criterion, dependencies: Dependencies
    ) -> list[list[np.ndarray] | None]:
        groups = dependencies.groups
        by_variable = {id(k.variable): k for k in compressible_kernels(dependencies.model)}
        # A user's own layer may make channels by a weight that is not in the table of kernels.
        makers = [[p for p in g.makers if id(p.member.variable) in by_variable] for g in groups]
        wanted = {
            id(p.member.variable): by_variable[id(p.member.variable)]
            for places in makers
            for p in places
        }
        kernels = list(wanted.values())
        statistics = Statistics(self.trained or dependencies.model, kernels, self.loss)
        parts = []
        if criterion.needs_data:
            parts = list(batches(self.data, self.num_batches, self.batch_size))
        seeds = [(self.seed, i) for i in range(len(kernels))]
        arrays = compute_scores(criterion, statistics, [k.name for k in kernels], seeds, parts)
        by_kernel = dict(zip(wanted, arrays, strict=True))
        return [
            _nothing([_along(by_kernel[id(p.member.variable)], p).sum(1) for p in places])
            for places in makers
        ]


def _scored(criterion: Criterion, group: Group, values: np.ndarray) -> np.ndarray:
    """The scores of a group's channels by a criterion of channels."""
    scores = np.asarray(criterion(**{criterion.parameters[0]: values}))
    if scores.shape != (len(group),):
        raise ValueError(
            f"A criterion of channels returns one score per channel: expected shape "
            f"{(len(group),)} for {group.name}. Received: shape {scores.shape} from "
            f"{criterion.name!r}"
        )
    return scores


def _nothing(scores: Sequence) -> Sequence | None:
    return scores if len(scores) else None


def _along(array: np.ndarray, place) -> np.ndarray:
    """`(channels, the rest)` of an array laid out like the variable of a place."""
    rows = np.moveaxis(array, place.member.axis, 0)
    return rows[place.indices].reshape(len(place.indices), -1)


def _rows(place) -> np.ndarray:
    return _along(np.asarray(place.member.variable), place).astype(np.float64)


def _scales(group: Group) -> list[np.ndarray]:
    """|γ| of each batch norm in the group, the largest where a channel has several."""
    return [
        np.abs(_rows(place)).max(1)
        for place in group.places
        if isinstance(place.member.layer, keras.layers.BatchNormalization)
        and place.member.variable.name == "gamma"
    ]


#: Input of a criterion of channels → function of a group that returns it for each of its layers.
_INPUTS_OF_GROUPS: dict[str, Callable[[Group], list[np.ndarray]]] = {
    "scale": _scales,
    "weights": lambda group: [_rows(place) for place in group.makers],
}
