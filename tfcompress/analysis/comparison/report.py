"""The report of `compare`: its figures as tables of text, as values and as a page."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tfcompress.analysis.comparison.html import comparison_page, save_page
from tfcompress.analysis.comparison.layer_errors import LayerError
from tfcompress.analysis.comparison.records import ModelFigures
from tfcompress.export.runtime.metrics import Scores
from tfcompress.tables import Printable, html_of, render_table


@dataclasses.dataclass(frozen=True)
class CompareReport(Printable):
    """What `compare` found. Print it, or `save_html` it; in a notebook it shows itself as tables.

    Attributes:
        reference: Name of the model that the others are compared with.
        samples: How many samples were run.
        models: Figures of every model, in the order given.
        cpu: Of this machine, on which latencies were measured.
        num_threads: Of the runtime.
        runs: Rounds of the latency measurement.
        notes: What could not be measured, and why.
        files: Name → bytes of the file, for plots of its weights.
        layers: Name of a quantized Keras model → what rounding does to each of its tensors, in
            running order, on the first 32 samples.
    """

    reference: str
    samples: int
    models: tuple[ModelFigures, ...]
    cpu: str
    num_threads: int
    runs: int
    notes: tuple[str, ...] = ()
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False)
    layers: Mapping[str, tuple[LayerError, ...]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def __getitem__(self, name: str) -> ModelFigures:
        """The figures of a model by its name."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields.pop("files")
        fields["models"] = [dataclasses.asdict(model) for model in self.models]
        fields["layers"] = {
            name: [dataclasses.asdict(error) for error in errors]
            for name, errors in self.layers.items()
        }
        return fields

    def save_html(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes one page with tables and plots, which needs no other file.

        Args:
            path: Ends in `.html`.
        """
        text = comparison_page(html_of(self), self.models, self.files, self.layers)
        return save_page(path, text)

    def __str__(self) -> str:
        text = self._costs() + self._quality() + self._classes()
        timed = [m for m in self.models if m.latency_ms is not None]
        lines = [f"{self.samples} samples; differences and ratios are to {self.reference!r}."]
        if timed:
            lines.append(
                f"Latency: median of {self.runs} rounds in turns, {self.num_threads} thread(s), "
                f"{self.cpu}; [quartiles] of the ratio."
            )
        lines.append("Peak memory: the most bytes that activations hold at a time.")
        lines.append("Figures of a Keras model are those of the .tflite that it converts to.")
        return text + "\n".join([*lines, *self.notes]) + "\n"

    def _costs(self) -> str:
        rows = [
            (
                *(m.name, m.kind, m.num_bytes, m.gzip_bytes, m.parameters, m.nonzeros, m.macs),
                m.activation_bytes,
                "" if m.latency_ms is None else f"{m.latency_ms:.3f}",
                "" if m.latency_ratio is None else f"× {m.latency_ratio}",
            )
            for m in self.models
        ]
        columns = ["model", "kind", "bytes", "gzip", "parameters", "non-zeros", "MACs"]
        columns += ["peak memory", "ms", "latency"]
        return render_table("Cost", columns, rows, width=200)

    def _quality(self) -> str:
        heads: list[str] = []
        rows = []
        for m in self.models:
            cells = _metric_cells(m.scores)
            heads = list(cells) or heads
            top1 = "" if m.agreement.top1 is None else f"{m.agreement.top1:.2%}"
            differences = (f"{m.agreement.largest:.4g}", f"{m.agreement.mean:.4g}")
            snr = "∞" if math.isinf(m.agreement.snr_db) else f"{m.agreement.snr_db:.1f}"
            rows.append((m.name, *cells.values(), top1, snr, *differences))
        columns = ("model", *heads, "same top-1", "SNR in dB", "largest difference", "mean")
        return render_table("Quality", columns, rows, width=200)

    def _classes(self) -> str:
        scored = [m for m in self.models if m.scores is not None and m.scores.classes]
        if not scored or len(scored[0].scores.classes) > 20:  # type: ignore[union-attr]
            return ""
        rows = []
        for i, own in enumerate(scored[0].scores.classes):  # type: ignore[union-attr]
            found = [m.scores.classes[i] for m in scored if m.scores is not None]
            cells = (f"{c.precision:6.1%} {c.recall:6.1%} {c.f1:6.1%}" for c in found)
            rows.append((own.name, own.samples, *cells))
        columns = ("class", "samples", *(m.name for m in scored))
        return render_table("Precision, recall and F1 by class", columns, rows, width=200)


def _metric_cells(scores: Scores | None) -> dict[str, str]:
    if scores is None:
        return {}
    cells: dict[str, str] = {}
    for field, head, digits in (
        ("accuracy", "accuracy", ".2%"),
        ("precision", "precision", ".2%"),
        ("recall", "recall", ".2%"),
        ("f1", "F1", ".2%"),
        ("calibration_error", "calibration error", ".4f"),
        ("mean_absolute_error", "mean abs. error", ".4f"),
        ("root_mean_squared_error", "RMSE", ".4f"),
        ("largest_error", "largest error", ".4f"),
        ("r2", "R²", ".4f"),
    ):
        value = getattr(scores, field)
        if value is not None:
            cells[head] = format(value, digits)
    return cells | {name: f"{value:.4f}" for name, value in scores.metrics.items()}
