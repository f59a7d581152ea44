"""As few bits as a metric allows, lowered layer by layer during training."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfcompress.model.compressed import is_compressed
from tfcompress.model.guided import GuidedCallback
from tfcompress.model.kernels import iterate_layers
from tfcompress.model.lookup import check_keys, look_up
from tfcompress.model.paths import layer_paths
from tfcompress.model.replicas import check_replicas
from tfcompress.quantization.fake_quant.uniform_weights import UniformWeights
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.observers import MinMax
from tfcompress.quantization.placement.plan import PlanEntry, describe_weights


class GuidedBits(GuidedCallback):
    """Lowers the bits of kernels, a layer after an epoch, while a metric holds.

    After each epoch: if the metric is within `max_drop` of the baseline, the weights are
    remembered and the next layer gets the next lower number of bits. If it is not, training goes
    on for up to `patience` more epochs; if the metric still does not hold, the remembered weights
    come back, and the layer keeps the bits that it had. Layers take turns, those of least
    `sensitivity` first, and among equals those with the most weights. When training ends, the
    configuration that held last is what remains.

    It is for models of uniform weights whose range follows the kernel, as `quantize` makes them by
    default. The train step is traced anew at each change. Put it before `BackupAndRestore`: a
    backup holds the state of the search, with the remembered weights. A second `fit` searches on
    from the bits that it finds.

    Args:
        monitor: Name of the metric, as in the epoch's logs.
        max_drop: How far the metric may fall below the baseline (or rise above it, for a metric
            that is minimized), in units of the metric, >= 0.
        baseline: The value to compare with; by default the metric after the first epoch. Give it
            with `validation_freq` above 1; epochs without the metric change nothing.
        bits: The numbers of bits, falling, each from 2 to 8.
        sensitivity: Layer name or path (as in `plan`), regular expression, class or name of a
            class → what fewer bits cost there, for the order; 0 without a key.
        patience: Epochs that a change gets before it counts as too much, >= 1.
        mode: `"max"`, `"min"` or `"auto"`: by the name of the metric.

    Attributes:
        chosen: Layer → its bits, once training has ended.

    Raises:
        ValueError: An argument is out of range; at the start of `fit`, a model without such
            kernels, a key of `sensitivity` that matches no layer, or a backup of another search;
            after the first epoch, no such metric.

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
        falling = all(a > b for a, b in itertools.pairwise(bits))
        if not bits or not falling or not all(2 <= b < 8 for b in bits):
            raise ValueError(f"Expected falling `bits` from 7 to 2. Received: bits={bits!r}")
        settings = {"bits": tuple(bits)}
        super().__init__(monitor, max_drop, baseline, patience, mode, settings)
        self.bits = tuple(bits)
        self.sensitivity = dict(sensitivity or {})
        self.chosen: dict[str, int] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        trained = self._trained
        names = layer_paths(trained)
        paths = self._paths(trained)
        every_layer = [(la, *paths.get(la.name, ())) for la in iterate_layers(trained)]
        check_keys(self.sensitivity, every_layer, "sensitivity")
        found: dict[str, list[FakeQuantizeWeights]] = {}
        layers = {}
        for layer in iterate_layers(trained):
            if not is_compressed(layer):
                continue
            every = layer.transformed.of_type(FakeQuantizeWeights).values()
            if transforms := [t for t in every if _follows_the_kernel(t)]:
                found[names[id(layer)]] = transforms
                layers[names[id(layer)]] = layer
        if not found:
            raise ValueError(
                "Expected a quantized model with uniform weights whose range follows the kernel. "
                f"Received: {trained.name!r}, which has none. Train what "
                "tfcompress.quantize(model) returns."
            )
        check_replicas(self.model)
        self._by_name = found
        sizes = {n: sum(int(np.prod(t.grid.shape)) for t in ts) for n, ts in found.items()}

        def turn(name: str) -> tuple[float, int]:
            layer = layers[name]
            aliases = paths.get(layer.name, ())
            return look_up(self.sensitivity, layer, *aliases, default=0.0), -sizes[name]

        turns = sorted(found, key=turn)
        self._steps = [(name, bits) for bits in self.bits for name in turns]
        self._changed = ""
        self._begin()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._end()
        self.chosen = self._bits()
        trained = self._trained
        plan = getattr(trained, "plan", None)
        if plan is not None:
            trained.plan = dataclasses.replace(plan, entries=tuple(map(self._entry, plan.entries)))

    @staticmethod
    def _paths(model: Any) -> dict[str, tuple[str, ...]]:
        """Layer of a quantized model → its paths in the nested models that it was made from."""
        plan = getattr(model, "plan", None) or ()
        found: dict[str, tuple[str, ...]] = {}
        for entry in plan:
            for part in entry.parts:
                found[part] = (*found.get(part, ()), entry.name)
        return found

    def _entry(self, entry: PlanEntry) -> PlanEntry:
        """An entry of the plan with the bits that were chosen."""
        found = [self._by_name[part] for part in entry.parts if part in self._by_name]
        if not found or not entry.weights:
            return entry
        return dataclasses.replace(entry, weights=describe_weights(found[0][0].scheme))

    def _choice(self) -> dict[str, np.ndarray]:
        return {"bits": np.array(list(self._bits().values()), np.int64)}

    def _choose(self, choice: Mapping[str, np.ndarray]) -> None:
        self._set(dict(zip(self._by_name, map(int, choice["bits"]), strict=True)))

    def _progress(self) -> dict[str, np.ndarray]:
        names = list(self._by_name)
        left = [(names.index(name), bits) for name, bits in self._steps]
        changed = names.index(self._changed) if self._changed else -1
        return {
            "steps": np.array(left, np.int64).reshape(-1, 2),
            "changed": np.asarray(changed, np.int64),
        }

    def _resume(self, progress: Mapping[str, np.ndarray]) -> None:
        names = list(self._by_name)
        self._steps = [(names[i], int(bits)) for i, bits in progress["steps"]]
        changed = int(progress["changed"])
        self._changed = names[changed] if changed >= 0 else ""

    def _advance(self) -> None:
        """Gives the next layer in turn fewer bits."""
        while self._steps:
            name, bits = self._steps.pop(0)
            if self._bits()[name] > bits:
                self._changed = name
                self._set({name: bits})
                return

    def _reject(self) -> None:
        """The layer's lower numbers are not tried any more."""
        self._steps = [step for step in self._steps if step[0] != self._changed]

    def _bits(self) -> dict[str, int]:
        return {name: transforms[0].num_bits for name, transforms in self._by_name.items()}

    def _set(self, bits: Mapping[str, int]) -> None:
        for name, number in bits.items():
            for transform in self._by_name[name]:
                transform.scheme = dataclasses.replace(transform.scheme, num_bits=number)
                transform.grid = dataclasses.replace(transform.grid, options=transform.scheme)
        # The numbers are constants of the traced steps.
        self.model.train_function = None
        self.model.test_function = None
        self.model.make_train_function(force=True)
        for model in (self.model, getattr(self.model, "student", None)):
            if model is not None:
                model.predict_function = None


def _follows_the_kernel(transform: FakeQuantizeWeights) -> bool:
    """Whether nothing but the scheme knows the number of bits."""
    scheme = transform.scheme
    return type(scheme.quantizer) is UniformWeights and type(scheme.observer) is MinMax
