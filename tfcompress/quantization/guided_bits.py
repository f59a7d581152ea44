"""As few bits as a metric allows, lowered layer by layer during training."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from tfcompress.model.compressed import is_compressed
from tfcompress.model.directions import direction
from tfcompress.model.kernels import iterate_layers
from tfcompress.model.lookup import look_up
from tfcompress.quantization.fake_quant.uniform_weights import UniformWeights
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.observers import MinMax
from tfcompress.quantization.placement.plan import PlanEntry, describe_weights


class GuidedBits(keras.callbacks.Callback):
    """Lowers the bits of kernels, a layer after an epoch, while a metric holds.

    After each epoch: if the metric is within `max_drop` of the baseline, the weights are
    remembered and the next layer gets the next lower number of bits. If it is not, training goes
    on for up to `patience` more epochs; if the metric still does not hold, the remembered weights
    come back, and the layer keeps the bits that it had. Layers take turns, those of least
    `sensitivity` first, and among equals those with the most weights. When training ends, the
    configuration that held last is what remains.

    It is for models of uniform weights whose range follows the kernel, as `quantize` makes them by
    default. The train step is traced anew at each change.

    Args:
        monitor: Name of the metric, as in the epoch's logs.
        max_drop: How far the metric may fall below the baseline (or rise above it, for a metric
            that is minimized), in units of the metric, >= 0.
        baseline: The value to compare with; by default the metric after the first epoch.
        bits: The numbers of bits, falling, each from 2 to 8.
        sensitivity: Layer name, regular expression, class or name of a class → what fewer bits
            cost there, for the order; 0 without a key.
        patience: Epochs that a change gets before it counts as too much, >= 1.
        mode: `"max"`, `"min"` or `"auto"`: by the name of the metric.

    Attributes:
        chosen: Layer → its bits, once training has ended.

    Raises:
        ValueError: An argument is out of range; at the start of `fit`, a model without such
            kernels; after the first epoch, no such metric.

    Example:
        >>> callback = tfc.callbacks.GuidedBits("val_accuracy", max_drop=0.01, bits=(4,))
        >>> callback.mode
        'max'
    """

    def __init__(
        self,
        monitor: str = "val_accuracy",
        max_drop: float = 0.01,
        baseline: float | None = None,
        bits: Sequence[int] = (4,),
        sensitivity: Mapping[Any, float] | None = None,
        patience: int = 1,
        mode: Literal["auto", "max", "min"] = "auto",
    ):
        super().__init__()
        if max_drop < 0:
            raise ValueError(f"`max_drop` must be >= 0. Received: max_drop={max_drop}")
        if patience < 1:
            raise ValueError(f"`patience` must be >= 1. Received: patience={patience}")
        falling = all(a > b for a, b in itertools.pairwise(bits))
        if not bits or not falling or not all(2 <= b < 8 for b in bits):
            raise ValueError(f"Expected falling `bits` from 7 to 2. Received: bits={bits!r}")
        if mode not in ("auto", "max", "min"):
            raise ValueError(f"`mode` must be 'auto', 'max' or 'min'. Received: mode={mode!r}")
        self.monitor = monitor
        self.max_drop = max_drop
        self.baseline = baseline
        self.bits = tuple(bits)
        self.sensitivity = dict(sensitivity or {})
        self.patience = patience
        self.mode = direction(monitor) if mode == "auto" else mode
        self.chosen: dict[str, int] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        trained = self._trained
        self._by_name = {
            layer.name: transform
            for layer in iterate_layers(trained)
            if is_compressed(layer)
            for transform in layer.transformed.of_type(FakeQuantizeWeights).values()
            if _follows_the_kernel(transform)
        }
        if not self._by_name:
            raise ValueError(
                "Expected a quantized model with uniform weights whose range follows the kernel. "
                f"Received: {trained.name!r}, which has none. Train what "
                "tfcompress.quantize(model) returns."
            )
        layers = {layer.name: layer for layer in iterate_layers(trained)}
        sizes = {n: int(np.prod(t.grid.shape)) for n, t in self._by_name.items()}
        self._turns = sorted(
            self._by_name,
            key=lambda n: (look_up(self.sensitivity, layers[n], default=0.0), -sizes[n]),
        )
        self._steps = [(name, bits) for bits in self.bits for name in self._turns]
        self._reference = self.baseline
        self._waited = 0
        self._changed: tuple[str, int] | None = None
        self._held: list[np.ndarray] | None = None
        self._held_bits = self._bits()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.monitor not in (logs or {}):
            raise ValueError(
                "`monitor` must be a metric of each epoch; is `validation_data` missing? "
                f"Received: monitor={self.monitor!r}, metrics={sorted(logs or {})}"
            )
        assert logs is not None
        value = float(logs[self.monitor])
        if self._reference is None:
            self._reference = value
        drop = (self._reference - value) * (-1 if self.mode == "min" else 1)
        if drop <= self.max_drop:
            self._held = [v.numpy() for v in self._variables()]
            self._held_bits = self._bits()
        else:
            self._waited += 1
            if self._waited < self.patience:
                return
            self._back()
        self._waited = 0
        if self._held is not None:
            self._lower()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._back()
        self.chosen = self._bits()
        trained = self._trained
        plan = getattr(trained, "plan", None)
        if plan is not None:
            trained.plan = dataclasses.replace(plan, entries=tuple(map(self._entry, plan.entries)))

    def _entry(self, entry: PlanEntry) -> PlanEntry:
        """An entry of the plan with the bits that were chosen."""
        found = [self._by_name[part] for part in entry.parts if part in self._by_name]
        if not found or not entry.weights:
            return entry
        return dataclasses.replace(entry, weights=describe_weights(found[0].scheme))

    @property
    def _trained(self) -> Any:
        """The model whose kernels are meant: of a distiller the student."""
        return getattr(self.model, "student", self.model)

    def _lower(self) -> None:
        """Gives the next layer in turn fewer bits."""
        while self._steps:
            name, bits = self._steps.pop(0)
            if self._by_name[name].num_bits > bits:
                self._changed = name, bits
                self._set({name: bits})
                return

    def _back(self) -> None:
        """Takes back what did not hold; the layer's lower numbers are not tried any more."""
        if self._bits() == self._held_bits:
            return
        self._set(self._held_bits)
        if self._held is not None:
            for variable, value in zip(self._variables(), self._held, strict=True):
                variable.assign(value)
        if self._changed is not None:
            self._steps = [step for step in self._steps if step[0] != self._changed[0]]

    def _bits(self) -> dict[str, int]:
        return {name: transform.num_bits for name, transform in self._by_name.items()}

    def _set(self, bits: Mapping[str, int]) -> None:
        for name, number in bits.items():
            transform = self._by_name[name]
            transform.scheme = dataclasses.replace(transform.scheme, num_bits=number)
            transform.grid = dataclasses.replace(transform.grid, options=transform.scheme)
        # The numbers are constants of the traced steps.
        self.model.train_function = None
        self.model.test_function = None
        self.model.make_train_function(force=True)
        for model in (self.model, getattr(self.model, "student", None)):
            if model is not None:
                model.predict_function = None

    def _variables(self) -> list[keras.Variable]:
        """What is remembered: the weights and the optimizer's moments, but not its clock."""
        clock = {"iteration", "learning_rate"}
        moments = [v for v in self.model.optimizer.variables if v.name not in clock]
        return [*self._trained.variables, *moments]


def _follows_the_kernel(transform: FakeQuantizeWeights) -> bool:
    """Whether nothing but the scheme knows the number of bits."""
    scheme = transform.scheme
    return type(scheme.quantizer) is UniformWeights and type(scheme.observer) is MinMax
