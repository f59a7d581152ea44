"""What a search found: candidates, the front, the winner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tfcompress.analysis.costs.budgets import Costs
from tfcompress.analysis.measuring.confidence import Drop
from tfcompress.analysis.recipes.recipe import Recipe
from tfcompress.analysis.search.front import Point
from tfcompress.analysis.sensitivity.table import Sensitivity
from tfcompress.quantization.quantized_model import QuantizedModel
from tfcompress.tables import render_table


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A candidate that was trained, exported and measured.

    Attributes:
        point: The candidate as it was predicted.
        costs: What its file costs.
        metric: The metric of its file on the validation data.
        drop: Its drop from the float model.
        divergence: Of the file before training, on the samples of the sensitivities: beside
            `point.loss`, the sum over options, it tells how far these add up.
        seconds: What training took.
        fits: Whether the file is within all budgets.
    """

    point: Point
    costs: Costs
    metric: float
    drop: Drop
    divergence: float
    seconds: float
    fits: bool

    @property
    def num_bytes_error(self) -> float:
        """Relative error of the predicted bytes."""
        return self.point.costs.num_bytes / self.costs.num_bytes - 1

    @property
    def gzip_bytes_error(self) -> float:
        """Relative error of the predicted bytes under gzip."""
        return self.point.costs.gzip_bytes / self.costs.gzip_bytes - 1

    def to_row(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "key": self.point.assignment.key,
            "assignment": self.point.assignment.to_dict(),
            "predicted_loss": self.point.loss,
            "predicted_costs": dataclasses.asdict(self.point.costs),
            "costs": dataclasses.asdict(self.costs),
            "metric": self.metric,
            "drop": dataclasses.asdict(self.drop),
            "divergence": self.divergence,
            "seconds": self.seconds,
            "fits": self.fits,
        }


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What `search` found. Print it.

    Attributes:
        model: The trained winner: `export_tflite(result.model, path)` gives the bytes of `best`.
        best: The winner as it was measured.
        candidates: All that were trained and measured, in the order of their predicted cost.
        front: Candidates without training, the cheapest first: no other one is predicted to be
            better in both the cost and the loss.
        sensitivity: What each option of each layer costs.
        baseline: The metric of the float model.
        metric: Name of the metric.
        max_drop: What was allowed; `None` where nothing was said.
        recipe: What gives the model again: `result.recipe.run(model, train)`.
        float_costs: What the float model costs; of bytes, those of its int8 file.
        notes: What to know about the decision.
    """

    model: QuantizedModel
    best: Candidate
    candidates: tuple[Candidate, ...]
    front: tuple[Point, ...]
    sensitivity: Sensitivity
    baseline: float
    metric: str
    max_drop: float | None
    recipe: Recipe
    float_costs: Costs
    notes: tuple[str, ...]

    @property
    def table(self) -> list[dict[str, Any]]:
        """The measured candidates as plain dictionaries."""
        return [candidate.to_row() for candidate in self.candidates]

    def __str__(self) -> str:
        heads = ("", "bytes", "gzip", "MACs", self.metric, "drop", "bound", "predicted gzip")
        rows: list[tuple] = []
        whole = self.float_costs
        rows.append(("float", "", "", int(whole.macs), self.baseline, "", "", ""))
        for candidate in self.candidates:
            name = "chosen" if candidate is self.best else "" if candidate.fits else "too large"
            costs = candidate.costs
            rows.append(
                (
                    name,
                    int(costs.num_bytes),
                    int(costs.gzip_bytes),
                    int(costs.macs),
                    candidate.metric,
                    candidate.drop.mean,
                    candidate.drop.bound,
                    f"{candidate.gzip_bytes_error:+.1%}",
                )
            )
        text = render_table("Search: files that were measured", heads, rows)
        text += describe_assignment(self.best.point.assignment.to_dict())
        text += (
            f"Divergence from the float model before training: {self.best.divergence:.3g} with all "
            f"options together, {self.best.point.loss:.3g} as the sum of each alone.\n"
        )
        return text + "".join(f"{note}\n" for note in self.notes)

    def plot(self, path: Any = None) -> Any:
        """Draws the predicted front, and the metric of the measured files, over their bytes.

        Args:
            path: Where to save the picture; by default it is not saved.

        Returns:
            The matplotlib figure.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([p.costs.gzip_bytes for p in self.front], [p.loss for p in self.front], ".-")
        left.set_xlabel("predicted bytes under gzip")
        left.set_ylabel("predicted loss")
        left.set_yscale("log")
        right.plot(
            [c.costs.gzip_bytes for c in self.candidates],
            [c.metric for c in self.candidates],
            "o",
        )
        right.plot([self.best.costs.gzip_bytes], [self.best.metric], "s", label="chosen")
        right.axhline(self.baseline, linestyle=":", label="float")
        right.set_xlabel("bytes under gzip")
        right.set_ylabel(self.metric)
        right.legend()
        if path is not None:
            figure.savefig(path)
        return figure


def describe_assignment(assignment: Mapping[str, Any]) -> str:
    """What an assignment changes, as a table of layers."""
    parts: dict[str, list[str]] = {}
    shapes = {
        "channels": "channels × {}",
        "ranks": "low rank × {}",
        "sparsity": "{} zeros",
        "bits": "int{}, packed" if assignment.get("packed") else "int{}",
    }
    for kind, shown in shapes.items():
        for name, value in assignment[kind].items():
            parts.setdefault(name, []).append(shown.format(value))
    rows: Sequence[tuple] = [(name, ", ".join(found)) for name, found in parts.items()]
    return render_table("Chosen; all else is int8", ("layer", "gets"), rows) if rows else ""
