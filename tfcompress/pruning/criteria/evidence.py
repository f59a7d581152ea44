"""Scores and gradients for an update of masks, from the batches that the update reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfcompress.model.finite import check_finite
from tfcompress.model.workers import mean_over_workers, several_workers
from tfcompress.pruning.criteria.options import DEFAULT_SCORING, ScoringOptions
from tfcompress.pruning.criteria.registry import Criterion
from tfcompress.pruning.criteria.scoring import compute_scores
from tfcompress.pruning.criteria.statistics import Statistics, batches


class Evidence:
    """Scores and gradients of kernels at a step.

    Args:
        criterion: Scores the weights.
        statistics: Knows the kernels, their gradients and their activations.
        names: Names of the kernels, for errors.
        seeds: A seed per kernel, for criteria that are random.
        data: Batches; see `Pruner`.
        options: How many batches each update reads, and their size.

    Raises:
        ValueError: `data` is an iterator, which could be read but once.
    """

    def __init__(
        self,
        criterion: Criterion,
        statistics: Statistics,
        names: Sequence[str],
        seeds: Sequence[tuple[int, ...]],
        *,
        data: Any = None,
        options: ScoringOptions = DEFAULT_SCORING,
    ):
        if hasattr(data, "__next__"):
            raise ValueError(
                "`data` is read at every update, and an iterator can be read once. Expected a "
                f"tuple of arrays, a tf.data.Dataset or a list of batches. Received: {data!r}"
            )
        self.criterion = criterion
        self.statistics = statistics
        self.names = names
        self.seeds = seeds
        self.data = data
        self.options = options

    def scores(self, step: int, batch: Any = None) -> list[np.ndarray]:
        """The criterion's scores, one array per kernel."""
        if not self.criterion.needs_data:
            return self._scores(())
        return self._mean(self._scores, step, batch)

    def gradients(self, step: int, batch: Any = None) -> list[np.ndarray]:
        """The gradient of each kernel, averaged over the batches of an update."""
        return self._mean(self._gradients, step, batch)

    def batches(self, step: int, batch: Any = None) -> list[tuple[Any, ...]]:
        """The batches that an update at `step` reads: `batch` alone where it is given."""
        if batch is not None:
            return [batch if isinstance(batch, tuple) else tuple(batch)]
        if self.data is None:
            raise ValueError(
                "This update needs gradients or activations. Expected `data=` at construction or "
                "`update(step, batch=(x, y))`. Received neither."
            )
        return self._read(self.options.num_batches, step)

    def try_out(self, step: int, with_gradients: bool) -> None:
        """Computes once what updates will need, so that bad data is an error before training.

        Args:
            step: The step.
            with_gradients: Whether the method asks for gradients beside the criterion.
        """
        if self.data is None or not (with_gradients or self.criterion.needs_data):
            return
        for part in self._read(1, step):
            if with_gradients:
                self.statistics.gradients(part)
            if self.criterion.needs_data:
                self._scores([part])

    def _scores(self, parts: Sequence[tuple[Any, ...]]) -> list[np.ndarray]:
        return compute_scores(self.criterion, self.statistics, self.names, self.seeds, parts)

    def _gradients(self, parts: Sequence[tuple[Any, ...]]) -> list[np.ndarray]:
        every = [self.statistics.gradients(part) for part in parts]
        for gradients in every:
            check_finite(gradients, self.names, "gradients")
        return [np.mean(one_kernel, axis=0) for one_kernel in zip(*every, strict=True)]

    def _mean(
        self,
        compute: Callable[[Sequence[tuple[Any, ...]]], list[np.ndarray]],
        step: int,
        batch: Any,
    ) -> list[np.ndarray]:
        """What is computed from batches; of several workers with batches of their own, the mean."""

        def of_this_worker() -> tuple[list[np.ndarray], int]:
            parts = self.batches(step, batch)
            return (compute(parts) if parts else []), len(parts)

        strategy = self.statistics.model.distribute_strategy
        shapes = [tuple(kernel.variable.shape) for kernel in self.statistics.kernels]
        means = mean_over_workers(strategy, shapes, of_this_worker)
        pairs = zip(means, shapes, strict=True)
        # No score is an infinite one.
        return [np.full(s, np.inf, np.float32) if mean is None else mean for mean, s in pairs]

    def _read(self, count: int, step: int) -> list[tuple[Any, ...]]:
        found = list(batches(self.data, count, self.options.batch_size, offset=step))
        # A worker may have no data where others have some.
        if not found and not several_workers(self.statistics.model.distribute_strategy):
            raise ValueError("`data` yielded no batch; pass something that can be iterated again.")
        return found
