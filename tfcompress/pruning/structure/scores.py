"""Scores of the channels of each group, higher for what should stay.

A criterion of weights is summed over the weights that make a channel; a criterion of channels is
computed for each layer of the group. Both are in `tfcompress.pruning.criteria`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfcompress.model.kernels import compressible_kernels
from tfcompress.model.workers import mean_over_workers
from tfcompress.pruning.criteria.options import DEFAULT_SCORING, ScoringOptions
from tfcompress.pruning.criteria.registry import Criterion, get_criterion
from tfcompress.pruning.criteria.scoring import compute_scores
from tfcompress.pruning.criteria.statistics import Statistics, batches
from tfcompress.pruning.structure.activations import ChannelActivations
from tfcompress.pruning.structure.dependencies import Dependencies, Group, Place
from tfcompress.pruning.structure.options import (
    DEFAULT_WIDTHS,
    NORMALIZATIONS,
    REDUCTIONS,
    WidthOptions,
)

#: Inputs, and where there are some labels and sample weights.
Batch = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Computes the scores of the channels of every group.

    Attributes:
        criterion: Name in the registry of criteria, a function, or a `Criterion`.
        data: Batches, for criteria that need gradients or activations.
        options: How criteria read the data.
        widths: How the scores of layers are reduced and normalized.
        seed: For criteria that are random.
        trained: The model whose loss it is, where that is not the one that loses channels: a
            distiller around it.
        strategy: That of a training whose workers all ask for the scores, each from batches of its
            own; `None` where one process asks.

    Raises:
        ValueError: A name is not known, data is missing, or the criterion adds up over training.
    """

    criterion: Any = "magnitude"
    data: Any = None
    options: ScoringOptions = DEFAULT_SCORING
    widths: WidthOptions = DEFAULT_WIDTHS
    seed: int = 0
    trained: keras.Model | None = None
    strategy: Any = None

    def __post_init__(self):
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
        if not get_criterion(self.criterion).needs_data:
            return self._reduced(dependencies, [])

        def of_this_worker() -> tuple[list[np.ndarray | None], int]:
            parts = list(batches(self.data, self.options.num_batches, self.options.batch_size))
            return (self._reduced(dependencies, parts) if parts else []), len(parts)

        shapes = [(len(group),) for group in dependencies.groups]
        return mean_over_workers(self.strategy, shapes, of_this_worker)

    def _reduced(self, dependencies: Dependencies, parts: list[Batch]) -> list[np.ndarray | None]:
        reduce = REDUCTIONS[self.widths.reduction]
        normalize = NORMALIZATIONS[self.widths.normalization]
        raw = self._raw(dependencies, parts)
        return [None if r is None else normalize(reduce(np.stack(r))) for r in raw]

    def _raw(self, dependencies: Dependencies, parts: list[Batch]) -> list[list[np.ndarray] | None]:
        """Per group, the scores by each of its layers."""
        criterion, groups = get_criterion(self.criterion), dependencies.groups
        if not criterion.scores_channels:
            return self._by_weights(criterion, dependencies, parts)
        (needed,) = criterion.parameters
        if needed in _INPUTS_OF_GROUPS:
            inputs = _INPUTS_OF_GROUPS[needed]
            return [_nothing([_scored(criterion, g, a) for a in inputs(g)]) for g in groups]
        seen = ChannelActivations(dependencies)
        for part in parts:
            seen.observe(part[0])
        measure = getattr(seen, needed)
        return [[_scored(criterion, g, measure(g))] if seen.sees(g) else None for g in groups]

    def _by_weights(
        self, criterion: Criterion, dependencies: Dependencies, parts: list[Batch]
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
        statistics = Statistics(self.trained or dependencies.model, kernels, self.options.loss)
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


def _nothing(scores: list[np.ndarray]) -> list[np.ndarray] | None:
    return scores if len(scores) else None


def _along(array: np.ndarray, place: Place) -> np.ndarray:
    """`(channels, the rest)` of an array laid out like the variable of a place."""
    rows = np.moveaxis(array, place.member.axis, 0)
    return rows[place.indices].reshape(len(place.indices), -1)


def _rows(place: Place) -> np.ndarray:
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
