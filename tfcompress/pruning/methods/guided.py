"""As sparse as a metric allows."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np

from tfcompress.model.directions import direction
from tfcompress.pruning.methods.method import Method
from tfcompress.pruning.methods.run import PruningRun

_FIELDS = ("baseline", "current", "best", "best_metric", "rate", "waited", "done")


@keras.saving.register_keras_serializable(package="tfcompress")
class MetricGuided(Method):
    """Raises the sparsity while a metric holds, and ends at the largest sparsity that held.

    After each epoch: if the metric is within `max_drop` of the baseline, the model is remembered
    and the fraction `rate` of what is left is removed. If it is not, the model is finetuned for up
    to `patience` more epochs; if it still does not hold, the last remembered model comes back,
    `rate` is halved, and pruning goes on from there, until `rate` falls below `min_rate`. When
    training ends, the remembered model with the largest sparsity is what remains.

    Args:
        monitor: Name of the metric, as in the epoch's logs.
        max_drop: How far the metric may fall below the baseline (or rise above it, for a metric
            that is minimized), in units of the metric, >= 0.
        baseline: The value to compare with; by default the metric after the first epoch, in which
            nothing is removed yet.
        rate: Fraction of the remaining weights to remove at a time, in (0, 1).
        min_rate: The `rate` at which the search ends, in (0, rate].
        patience: Epochs of finetuning that a sparsity gets before it counts as too high, >= 1.
        max_sparsity: The sparsity at which the search ends, in (0, 1).
        mode: `"max"`, `"min"` or `"auto"`: by the name of the metric, where it is one that is known
            to be better when it is higher (accuracy, AUC, ...) or lower (a loss, an error, ...).

    Raises:
        ValueError: If an argument is out of range, or `mode="auto"` does not know the metric.
    """

    needs_metrics = True

    def __init__(
        self,
        monitor: str = "val_accuracy",
        max_drop: float = 0.01,
        baseline: float | None = None,
        rate: float = 0.3,
        min_rate: float = 0.05,
        patience: int = 2,
        max_sparsity: float = 0.99,
        mode: Literal["auto", "max", "min"] = "auto",
    ):
        if max_drop < 0:
            raise ValueError(f"`max_drop` must be >= 0. Received: max_drop={max_drop}")
        if not 0 < min_rate <= rate < 1:
            raise ValueError(
                f"Expected 0 < min_rate <= rate < 1. Received: min_rate={min_rate}, rate={rate}"
            )
        if patience < 1:
            raise ValueError(f"`patience` must be >= 1. Received: patience={patience}")
        if not 0 < max_sparsity < 1:
            raise ValueError(
                f"`max_sparsity` must lie in (0, 1). Received: max_sparsity={max_sparsity}"
            )
        if mode not in ("auto", "max", "min"):
            raise ValueError(f"`mode` must be 'auto', 'max' or 'min'. Received: mode={mode!r}")
        if mode == "auto":
            mode = direction(monitor)
        self.monitor = monitor
        self.max_drop = max_drop
        self.baseline = baseline
        self.rate = rate
        self.min_rate = min_rate
        self.patience = patience
        self.max_sparsity = max_sparsity
        self.mode = mode

    @property
    def minimizes(self) -> bool:
        return self.mode == "min"

    def check(self, run: PruningRun) -> None:
        if run.pattern.sparsity is not None or run.criterion.accumulate:
            raise ValueError(
                "MetricGuided chooses the sparsity itself, with a criterion that can be computed "
                f"at any time. Received: pattern={run.pattern!r}, "
                f"criterion={run.criterion.name!r}"
            )

    def due(self, last_update: int | None, step: int) -> bool:
        return False

    def update(self, run: PruningRun, step: int, batch: Any) -> None:
        raise NotImplementedError(
            "Expected MetricGuided to get the metrics of each epoch (on_metrics), by which it "
            f"changes its masks. Received: an update at step {step}, which is never due."
        )

    def on_metrics(self, run: PruningRun, step: int, metrics: dict[str, Any], batch: Any) -> bool:
        search = self._search(run)
        if self.monitor not in metrics:
            if self.baseline is None and np.isnan(search["baseline"]):
                raise ValueError(
                    "`monitor` must be a metric of the first epoch, which gives the baseline; is "
                    "`validation_data` missing? With `validation_freq` above 1 give `baseline=`. "
                    f"Received: monitor={self.monitor!r}, metrics={sorted(metrics)}"
                )
            return False
        value = float(metrics[self.monitor])
        if np.isnan(search["baseline"]):
            search["baseline"] = value if self.baseline is None else self.baseline
        drop = (search["baseline"] - value) * (-1 if self.minimizes else 1)
        if drop <= self.max_drop:
            self._remember(run, search, value)
            search["waited"] = 0
            changed = self._raise(run, search, step, batch)
        else:
            search["waited"] += 1
            changed = search["waited"] >= self.patience and self._back_off(run, search, step, batch)
        self._store(run, search)
        return changed

    def finish(self, run: PruningRun, step: int) -> None:
        search = self._search(run)
        if np.isnan(search["baseline"]):
            raise ValueError(
                f"No epoch had the metric to go by, so nothing was pruned; is `validation_data` "
                f"missing? Received: monitor={self.monitor!r}"
            )
        if not np.isnan(search["best"]):
            self._recall(run)
            search["current"] = search["best"]
            # What was held is in the model now; a file need not carry it a second time.
            search["best"] = search["best_metric"] = float("nan")
            values = run.state.values
            for name in [name for name in values if name.startswith("held_")]:
                del values[name]
            self._store(run, search)

    def get_config(self) -> dict[str, Any]:
        names = (
            "monitor",
            "max_drop",
            "baseline",
            "rate",
            "min_rate",
            "patience",
            "max_sparsity",
            "mode",
        )
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MetricGuided:
        return cls(**config)

    def _raise(self, run: PruningRun, search: dict[str, float], step: int, batch: Any) -> bool:
        current = search["current"]
        if search["done"] or current >= self.max_sparsity:
            search["done"] = 1.0
            return False
        search["current"] = min(1 - (1 - current) * (1 - search["rate"]), self.max_sparsity)
        run.prune_to(search["current"], step, batch)
        return True

    def _back_off(self, run: PruningRun, search: dict[str, float], step: int, batch: Any) -> bool:
        search["waited"] = 0
        if np.isnan(search["best"]):
            # Not even the model that training began with holds: there is nothing to go back to.
            return False
        self._recall(run)
        search["current"] = search["best"]
        search["rate"] /= 2
        if search["rate"] < self.min_rate:
            search["done"] = 1.0
        self._raise(run, search, step, batch)
        return True

    def _remember(self, run: PruningRun, search: dict[str, float], value: float) -> None:
        same = search["current"] == search["best"]
        better = value < search["best_metric"] if self.minimizes else value > search["best_metric"]
        if same and not better:
            return
        search["best"], search["best_metric"] = search["current"], value
        values = run.state.values
        for index, variable in enumerate(_variables(run.model)):
            values[f"held_{index}"] = variable.numpy().copy()
        for index, mask in enumerate(run.masks):
            values[f"held_mask_{index}"] = mask.numpy().copy()

    def _recall(self, run: PruningRun) -> None:
        values = run.state.values
        for index, variable in enumerate(_variables(run.model)):
            variable.assign(values[f"held_{index}"])
        run.set_masks([values[f"held_mask_{i}"] for i in range(len(run.masks))])

    def _search(self, run: PruningRun) -> dict[str, float]:
        stored = run.state.values.get("search")
        if stored is None:
            nan = float("nan")
            stored = [nan, run.overall_sparsity(), nan, nan, self.rate, 0.0, 0.0]
        return dict(zip(_FIELDS, map(float, stored), strict=True))

    def _store(self, run: PruningRun, search: dict[str, float]) -> None:
        run.state.values["search"] = np.array([search[f] for f in _FIELDS], np.float64)


def _variables(model: keras.Model) -> list[keras.Variable]:
    """What is remembered: the weights and the optimizer's moments, but not its clock."""
    optimizer = getattr(model, "optimizer", None)
    moments = [] if optimizer is None else optimizer.variables
    clock = {"iteration", "learning_rate"}
    return list(model.variables) + [v for v in moments if v.name not in clock]
