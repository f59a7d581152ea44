"""The callback for training with a penalty, removal below a threshold and finetuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.methods.threshold import Threshold
from tfcompress.pruning.regularization.callback import Regularization


class ThresholdPruning(Pruning):
    """Trains with L1 or L2, cuts what fell below a threshold, and finetunes the rest.

    Up to the last of `prune_steps` the kernels that will be cut are regularized. At each of these
    steps the weights below `threshold`, or below `num_std` standard deviations of their layer, are
    removed for good. After the last one the model is finetuned without the penalty (Han et al.
    2015, https://arxiv.org/abs/1506.02626).

    Args:
        prune_steps: The step at which to cut, or several; each >= 1.
        threshold: Absolute threshold, > 0. Exactly one of `threshold` and `num_std` is given.
        num_std: Threshold in standard deviations of the layer's weights (zeros included), > 0.
        l1: Strength of the L1 penalty before the last cut.
        l2: Strength of the L2 penalty before the last cut.
        proximal: Take proximal steps in place of penalties; see `Regularization`.
        layers: Names, regular expressions, classes, names of classes, predicates, or a list of
            them.
        **options: `skip_first_last`, `restore_from`, `log_dir`, `verbose`; see `Pruning`.

    Raises:
        ValueError: If a step or threshold is out of range.
    """

    def __init__(
        self,
        prune_steps: int | Sequence[int],
        *,
        threshold: float | None = None,
        num_std: float | None = None,
        l1: float = 0.0,
        l2: float = 0.0,
        proximal: bool = False,
        layers: Any = None,
        **options: Any,
    ):
        given_steps = prune_steps if isinstance(prune_steps, Iterable) else [prune_steps]
        steps = [int(step) for step in given_steps]
        if not steps or min(steps) < 1 or steps != sorted(set(steps)):
            raise ValueError(
                "`prune_steps` must be one step or ascending steps, each >= 1. "
                f"Received: prune_steps={prune_steps}"
            )
        given = [value for value in (threshold, num_std) if value is not None]
        if len(given) != 1 or not given[0] > 0:
            raise ValueError(
                "Expected exactly one of `threshold` and `num_std`, above 0. "
                f"Received: threshold={threshold}, num_std={num_std}"
            )
        super().__init__(Threshold(steps, threshold, num_std), layers=layers, **options)
        self.regularization = None
        if l1 or l2:
            last = steps[-1]
            self.regularization = Regularization(
                l1=l1,
                l2=l2,
                schedule=lambda step: float(step < last),
                layers=self._is_pruned,
                proximal=proximal,
            )

    def _is_pruned(self, layer: keras.Layer) -> bool:
        kernels = () if self.pruner is None else self.pruner.kernels
        return any(kernel.layer is layer for kernel in kernels)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if self.regularization is not None:
            self.regularization.set_model(model)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_begin(batch, logs)
        if self.regularization is not None:
            self.regularization.on_train_batch_begin(batch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        if self.regularization is not None:
            self.regularization.on_train_end(logs)
        super().on_train_end(logs)
