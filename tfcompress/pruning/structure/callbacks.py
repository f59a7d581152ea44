"""The callback for channel masks during `model.fit`; it calls `ChannelPruner`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tfcompress.model.finite import LossWatch
from tfcompress.model.replicas import check_replicas
from tfcompress.pruning.criteria.options import DEFAULT_SCORING, ScoringOptions
from tfcompress.pruning.criteria.registry import Criterion
from tfcompress.pruning.schedules import get_schedule
from tfcompress.pruning.structure.masking import ChannelPruner
from tfcompress.pruning.structure.options import DEFAULT_WIDTHS, WidthOptions
from tfcompress.pruning.structure.planner import LayerBounds
from tfcompress.pruning.structure.scores import Scoring


class ChannelPruning(keras.callbacks.Callback):
    """Masks whole channels during an ordinary `model.fit`, for `shrink` to remove afterwards.

    ```python
    model.fit(x, y, callbacks=[
        tfc.callbacks.ChannelPruning(tfc.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=5000)),
    ])
    model = tfc.shrink(model)
    ```

    The schedule gives the fraction of multiply-accumulates that is gone at each step
    (`optimizer.iterations`). Which channels go together comes from the graph, as in `shrink`; a
    masked channel is zero in all its members: kernels, biases, γ and β. The constraints are taken
    off when training ends. Put the callback before `BackupAndRestore`: a resumed run takes up the
    channels that it finds at zero. What is left of the budget goes to the epoch's logs as
    `"macs_left"` or `"parameters_left"`.

    Args:
        schedule: A schedule (`PolynomialDecay`, ...), one of tfmot, or a callable.
        budget: What the schedule counts: `"macs"` or `"parameters"`.
        criterion: What scores a channel; see `shrink`.
        data: Batches for criteria that need gradients or activations; see `shrink`.
        bounds: Fractions of their channels that layers keep; see `shrink`.
        round_to: Widths are multiples of it, where the schedule ends.
        inputs: An example batch, where the model's input sizes are not known, for counting MACs.
        seed: For criteria that are random.
        widths: How scores become widths.
        scoring: How a criterion reads `data`.
        verbose: 0 is silent; 1 prints what cannot be removed, and a line after each epoch.

    Attributes:
        pruner: The `ChannelPruner` of the current or the last `fit`.

    Raises:
        ValueError: Data is missing; and before training starts, as `shrink`.
    """

    def __init__(
        self,
        schedule: Any,
        *,
        budget: str = "macs",
        criterion: str | Callable[..., Any] | Criterion = "magnitude",
        data: Any = None,
        bounds: LayerBounds | None = None,
        round_to: int = 8,
        inputs: Any = None,
        seed: int = 0,
        widths: WidthOptions = DEFAULT_WIDTHS,
        scoring: ScoringOptions = DEFAULT_SCORING,
        verbose: int = 1,
    ):
        super().__init__()
        self.schedule = get_schedule(schedule)
        self.budget = budget
        self.verbose = verbose
        Scoring(criterion, data, scoring, widths, seed)  # Raises for what does not fit together.
        self.options = {
            "budget": budget,
            "criterion": criterion,
            "data": data,
            "bounds": bounds,
            "round_to": round_to,
            "inputs": inputs,
            "seed": seed,
            "widths": widths,
            "scoring": scoring,
        }
        self.pruner: ChannelPruner | None = None
        self._watch = LossWatch("Channel masks")

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        check_replicas(model)
        self.pruner = ChannelPruner(model, self.schedule, **self.options)
        # The step was traced without the constraints if the model was fitted before.
        model.train_function = None
        if self.verbose and self.pruner.dependencies.kept:
            kept = self.pruner.dependencies.kept
            print("ChannelPruning keeps whole: " + ", ".join(f"{n} ({w})" for n, w in kept.items()))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Not earlier: in between, `BackupAndRestore` loads weights and steps.
        pruner = self._attached()
        if not pruner.begun:
            pruner.update(pruner.clock())

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._watch.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._watch.end_batch(self.model, batch, logs)
        pruner = self._attached()
        step = pruner.clock()
        if pruner.is_due(step):
            pruner.update(step)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        left = self._attached().left()
        if logs is not None:
            logs[f"{self.budget}_left"] = left
        if self.verbose:
            step = self._attached().clock()
            print(f"ChannelPruning, step {step}: {100 * left:.1f} % of {self.budget} left")

    def on_train_end(self, logs: Any = None) -> None:
        pruner = self._attached()
        if pruner.begun:
            pruner.update(pruner.clock())
        pruner.finish()
        self.model.train_function = None

    def _attached(self) -> ChannelPruner:
        if self.pruner is None:
            raise RuntimeError("Expected `set_model` first, which `fit` calls.")
        return self.pruner
