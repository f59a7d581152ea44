"""Candidates that are built, trained, exported and measured, each one once."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.analysis.costs.budgets import Costs
from tfcompress.analysis.measuring.confidence import Drop, paired_drop
from tfcompress.analysis.measuring.files import export_and_run, predict
from tfcompress.analysis.measuring.measures import divergence, output_kinds
from tfcompress.analysis.measuring.metrics import Metric
from tfcompress.analysis.measuring.samples import Samples
from tfcompress.analysis.options.assignment import Assignment
from tfcompress.analysis.recipes.finetune import finetune
from tfcompress.analysis.recipes.recipe import Recipe
from tfcompress.analysis.search.front import Point
from tfcompress.analysis.search.predicted import Predictions
from tfcompress.analysis.search.result import Candidate
from tfcompress.analysis.search.state import State
from tfcompress.model.compilation import compiled_as
from tfcompress.model.user_class import user_class
from tfcompress.quantization.quantized_model import QuantizedModel


@dataclasses.dataclass(frozen=True)
class Training:
    """How candidates are trained; see `search`.

    Attributes:
        data: Training data.
        epochs: Passes over it.
        learning_rate: At the beginning.
        batch_size: Of arrays.
        distill: Whether the float model teaches.
        seed: Of the order of samples.
    """

    data: Any
    epochs: int
    learning_rate: float
    batch_size: int
    distill: bool
    seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Original:
    """The float model that is compressed, and by what a candidate is compared with it.

    Attributes:
        model: As the user gave it; it teaches.
        held: Validation samples.
        reference: Its outputs of them.
        scored: Samples that calibrate ranges.
        metric: What is held.
        confidence: Of the bound of a drop.
    """

    model: keras.Model
    held: Samples
    reference: Any
    scored: Samples
    metric: Metric
    confidence: float

    def drop(self, outputs: Any) -> Drop:
        """How much the metric falls with other outputs of the validation samples."""
        return paired_drop(self.metric, self.held.labels, self.reference, outputs, self.confidence)


class Trials:
    """The candidates of one search that were measured.

    Args:
        original: What they are compared with.
        training: How candidates are trained.
        predictions: Costs and budgets.
        recipe: Assignment → the recipe that gives it again.
        state: Where rows and models are kept.

    Attributes:
        measured: The candidates, in the order of the trials.
        too_large: Costs of files that were above a budget before any training.
        advance: Called with what was measured.
    """

    def __init__(
        self,
        original: Original,
        training: Training,
        predictions: Predictions,
        recipe: Callable[[Assignment], Recipe],
        state: State,
    ):
        self.original, self.training, self.recipe = original, training, recipe
        self.predictions, self.state = predictions, state
        self._scored_reference = _list(predict(original.model, original.scored))
        self.kinds = output_kinds(original.model, self._scored_reference)
        self.measured: list[Candidate] = []
        self.too_large: list[Costs] = []
        self.advance: Callable[[str], None] = lambda what: None
        self._models: dict[str, QuantizedModel] = {}

    def measure(self, point: Point) -> Candidate:
        """Trains and measures a candidate, or takes what is known of it."""
        key = point.assignment.key
        done = [c for c in self.measured if c.point.assignment.key == key]
        if done:
            return done[0]
        row = self.state.get(key)
        if row is None:
            row = self._measure(point)
            self.state.set(key, row)
        costs = self._costs(point.assignment, lambda: self._kept(point.assignment))
        candidate = Candidate(
            point,
            costs,
            row["metric"],
            Drop(**row["drop"]),
            row["divergence"],
            row["seconds"],
            self.predictions.fits(costs),
        )
        self.measured.append(candidate)
        self.advance(
            f"{int(costs.gzip_bytes):,} bytes gzip, {self.original.metric.name} "
            f"{candidate.metric:.4f}"
        )
        return candidate

    def fits_untrained(self, point: Point) -> bool:
        """Whether the file is within the budget before training, which changes few bytes."""
        costs = self.predictions.untrained_costs(point.assignment)
        if not self.predictions.fits(costs):
            self.too_large.append(costs)
            return False
        return True

    def model_of(self, candidate: Candidate) -> QuantizedModel:
        """The trained model of a candidate."""
        key = candidate.point.assignment.key
        if key not in self._models:
            file = self.state.file(f"{key}.keras")
            assert file is not None
            own = user_class(self.original.model)
            known = {} if own is None else {keras.saving.get_registered_name(own): own}
            # A loss of the user's own need not be registered, so it is not loaded.
            model = keras.models.load_model(file, custom_objects=known, compile=False)
            self._models[key] = compiled_as(self.original.model, model)
            # Its budgets may be those of an earlier call in the same folder.
            self._models[key].recipe = self.recipe(candidate.point.assignment).to_dict()
        return self._models[key]

    def _costs(self, assignment: Assignment, data: Callable[[], bytes]) -> Costs:
        return self.predictions.costs_of(assignment, "trained", data)

    def _kept(self, assignment: Assignment) -> bytes:
        """The trained file in the folder, of which budgets of an earlier call asked for less."""
        file = self.state.file(f"{assignment.key}.tflite")
        assert file is not None
        return file.read_bytes()

    def _measure(self, point: Point) -> dict[str, Any]:
        original, key = self.original, point.assignment.key
        start = self.predictions.structured(point.assignment)
        model = point.assignment.build(start, original.scored.inputs)
        untrained = _list(predict(model, original.scored))
        parts = zip(self.kinds, self._scored_reference, untrained, strict=True)
        joint = float(sum(divergence(*part).mean() for part in parts))
        begun = time.monotonic()
        settings = dataclasses.asdict(dataclasses.replace(self.training, data=None))
        settings.pop("data")
        finetune(model, original.model, self.training.data, kinds=self.kinds, **settings)
        seconds = time.monotonic() - begun
        with tempfile.TemporaryDirectory() as folder:
            kept = self.state.file(f"{key}.tflite")
            file = pathlib.Path(folder) / "model.tflite" if kept is None else kept
            outputs = export_and_run(model, original.held, file).outputs
            self._costs(point.assignment, file.read_bytes)
        model.recipe = self.recipe(point.assignment).to_dict()
        stored = self.state.file(f"{key}.keras")
        if stored is not None:
            model.save(stored)
        self._models[key] = model
        drop = original.drop(outputs)
        return {
            "assignment": point.assignment.to_dict(),
            "metric": original.metric.value(original.held.labels, outputs),
            "drop": {
                k: float(v) if k != "samples" else v for k, v in dataclasses.asdict(drop).items()
            },
            "divergence": joint,
            "seconds": seconds,
        }


def _list(outputs: Any) -> list[np.ndarray]:
    return [np.asarray(o) for o in tree.flatten(outputs)]
