"""Compression that goes on while a metric holds: what the guided callbacks have in common."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np

from tfcompress.model.directions import direction

_HELD, _CHOSEN, _HELD_CHOICE = "held_", "chosen_", "held_chosen_"


class GuidedCallback(keras.callbacks.Callback):
    """Compresses a model step by step, an epoch each, and takes back what broke a metric.

    After each epoch: if the metric is within `max_drop` of the baseline, weights, moments of the
    optimizer and the choice are remembered, and the next change is made. If it is not, training
    goes on for up to `patience` epochs after the change; if the metric still does not hold, what
    was remembered comes back, and that change is not tried again.

    A subclass says what the changes are. The state of the search is saved with the model's weights
    while `fit` runs, so that `BackupAndRestore` finds it; it holds the remembered weights a second
    time.

    Args:
        monitor: Name of the metric, as in the epoch's logs.
        max_drop: How far the metric may fall below the baseline, >= 0.
        baseline: The value to compare with; `None`: that of the first epoch.
        patience: Epochs that a change gets before it counts as too much, >= 1.
        mode: `"max"`, `"min"` or `"auto"`: by the name of the metric.
        settings: All that makes this search; a backup of another one is refused.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        monitor: str,
        max_drop: float,
        baseline: float | None,
        patience: int,
        mode: Literal["auto", "max", "min"],
        settings: Mapping[str, Any],
    ):
        super().__init__()
        if not max_drop >= 0:
            raise ValueError(f"`max_drop` must be >= 0. Received: max_drop={max_drop}")
        if patience < 1:
            raise ValueError(f"`patience` must be >= 1. Received: patience={patience}")
        if mode not in ("auto", "max", "min"):
            raise ValueError(f"`mode` must be 'auto', 'max' or 'min'. Received: mode={mode!r}")
        self.monitor = monitor
        self.max_drop = max_drop
        self.baseline = baseline
        self.patience = patience
        self.mode = direction(monitor) if mode == "auto" else mode
        text = repr((monitor, max_drop, baseline, patience, self.mode, sorted(settings.items())))
        self._settings = zlib.crc32(text.encode())
        self._search: SavedArrays | None = None

    # ---- what a subclass says -------------------------------------------------------------------

    def _choice(self) -> dict[str, np.ndarray]:
        """What is chosen now, as arrays."""
        raise NotImplementedError(f"Expected a `_choice` of {type(self).__name__}.")

    def _choose(self, choice: Mapping[str, np.ndarray]) -> None:
        """Makes it so; weights are those of that choice already."""
        raise NotImplementedError(f"Expected a `_choose` of {type(self).__name__}.")

    def _progress(self) -> dict[str, np.ndarray]:
        """What has been tried, as arrays."""
        raise NotImplementedError(f"Expected a `_progress` of {type(self).__name__}.")

    def _resume(self, progress: Mapping[str, np.ndarray]) -> None:
        """Takes over what `_progress` returned."""
        raise NotImplementedError(f"Expected a `_resume` of {type(self).__name__}.")

    def _advance(self) -> None:
        """Makes the next change, if there is one."""
        raise NotImplementedError(f"Expected an `_advance` of {type(self).__name__}.")

    def _reject(self) -> None:
        """Notes that the last change was too much."""
        raise NotImplementedError(f"Expected a `_reject` of {type(self).__name__}.")

    # ---- the search -----------------------------------------------------------------------------

    @property
    def _trained(self) -> Any:
        """The model that is compressed: of a distiller the student."""
        return getattr(self.model, "student", self.model)

    def _begin(self) -> None:
        """Starts a search, and makes its state a part of what is saved with the model."""
        self._reference = self.baseline
        self._waited = 0
        self._holds = False
        self._seen = False
        self._epochs = 0
        self._held: list[np.ndarray] | None = None
        self._held_choice = self._choice()
        self._search = SavedArrays(f"guided_{type(self).__name__}", self._snapshot)
        self._search.attach(self.model)

    def _restore(self) -> None:
        """Takes over what `BackupAndRestore` has loaded, if it has."""
        arrays = self._search.take() if self._search is not None else None
        if arrays is None:
            return
        if int(arrays["settings"]) != self._settings:
            raise ValueError(
                f"Expected a backup of the same {type(self).__name__}. Received: one with other "
                "arguments. Give it the arguments of the interrupted training, or another folder."
            )
        reference = float(arrays["reference"])
        self._reference = None if np.isnan(reference) else reference
        self._waited = int(arrays["waited"])
        self._holds, self._seen = bool(arrays["holds"]), bool(arrays["seen"])
        held = _starting(arrays, _HELD + "value_")
        self._held = [held[str(i)] for i in range(len(held))] if held else None
        self._held_choice = _starting(arrays, _HELD_CHOICE)
        self._resume(_starting(arrays, "progress_"))
        self._choose(_starting(arrays, _CHOSEN))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Not earlier: `BackupAndRestore` loads after this callback's `on_train_begin`. Not later:
        # it replaces the train step, to skip batches, after this callback's `on_epoch_begin`.
        self._restore()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epochs += 1
        if self.monitor not in (logs or {}):
            if self._reference is None:
                raise ValueError(
                    "`monitor` must be a metric of each epoch; is `validation_data` missing? With "
                    "`validation_freq` above 1 give `baseline=`. "
                    f"Received: monitor={self.monitor!r}, metrics={sorted(logs or {})}"
                )
            return
        assert logs is not None
        self._seen = True
        value = float(logs[self.monitor])
        if self._reference is None and np.isfinite(value):
            self._reference = value
        reference = float("nan") if self._reference is None else self._reference
        drop = (reference - value) * (-1 if self.mode == "min" else 1)
        # A metric that is not a number holds nothing.
        self._holds = bool(drop <= self.max_drop)
        if self._holds:
            self._held = [_plain(v) for v in self._variables()]
            self._held_choice = self._choice()
        else:
            self._waited += 1
            if self._waited < self.patience:
                return
            self._back()
        self._waited = 0
        if self._held is not None:
            self._advance()

    def _end(self) -> None:
        """Leaves what held last, and takes the state off the model.

        Raises:
            ValueError: No epoch had the metric.
        """
        self._restore()
        if self._search is not None:
            self._search.detach(self.model)
        if self._epochs and not self._seen:
            raise ValueError(
                "Expected a metric of an epoch to go by; is `validation_data` missing? Received: "
                f"none called monitor={self.monitor!r}. Nothing was compressed."
            )
        if not self._holds or not _same(self._choice(), self._held_choice):
            self._back()

    def _back(self) -> None:
        """Takes back what did not hold."""
        is_changed = not _same(self._choice(), self._held_choice)
        if self._held is not None:
            for variable, value in zip(self._variables(), self._held, strict=True):
                variable.assign(value)
        if is_changed:
            self._choose(self._held_choice)
            self._reject()

    def _variables(self) -> list[keras.Variable]:
        """What is remembered: the weights and the optimizer's moments, but not its clock."""
        clock = {"iteration", "learning_rate"}
        moments = [v for v in self.model.optimizer.variables if v.name not in clock]
        return [*self._trained.variables, *moments]

    def _snapshot(self) -> dict[str, np.ndarray]:
        """The state of the search as arrays."""
        reference = float("nan") if self._reference is None else self._reference
        found = {
            "settings": np.asarray(self._settings, np.int64),
            "reference": np.asarray(reference, np.float64),
            "waited": np.asarray(self._waited),
            "holds": np.asarray(int(self._holds)),
            "seen": np.asarray(int(self._seen)),
        }
        for prefix, arrays in (
            (_HELD + "value_", {str(i): value for i, value in enumerate(self._held or [])}),
            (_HELD_CHOICE, self._held_choice),
            (_CHOSEN, self._choice()),
            ("progress_", self._progress()),
        ):
            found |= {prefix + name: value for name, value in arrays.items()}
        return found


class SavedArrays(keras.Operation):
    """Arrays that Keras saves and loads with the weights of a model that they are attached to.

    Args:
        key: The attribute of the model that holds them.
        snapshot: Returns what to save.
    """

    def __init__(self, key: str, snapshot: Any):
        super().__init__(name=key)
        self.key = key
        self._snapshot = snapshot
        self._loaded: dict[str, np.ndarray] | None = None

    def call(self, *args: Any) -> Any:
        raise NotImplementedError(
            f"Expected {self.name!r} to be saved and loaded with its model. Received: a call of it."
        )

    def attach(self, model: keras.Model) -> None:
        """Makes it a part of what is saved with a model."""
        # Not by Keras' own `__setattr__`, which would track it.
        object.__setattr__(model, self.key, self)

    def detach(self, model: keras.Model) -> None:
        """Takes it off the model."""
        if getattr(model, self.key, None) is self:
            object.__delattr__(model, self.key)

    def take(self) -> dict[str, np.ndarray] | None:
        """What a file has brought in, once; `None` for nothing."""
        found, self._loaded = self._loaded, None
        return found

    def save_own_variables(self, store: Any) -> None:
        for name, value in self._snapshot().items():
            store[name] = value

    def load_own_variables(self, store: Any) -> None:
        self._loaded = {name: np.asarray(store[name]) for name in list(store.keys())} or None


def _starting(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def _plain(variable: keras.Variable) -> np.ndarray:
    """A value that any file can hold: HDF5 has no bfloat16."""
    value = variable.numpy()
    return value.astype(np.float32) if str(value.dtype) == "bfloat16" else value.copy()
