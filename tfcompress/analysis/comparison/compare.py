"""`compare`: any mix of Keras models and `.tflite` files side by side on data."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.analysis.comparison.html import comparison_page, save_page
from tfcompress.analysis.comparison.layer_errors import (
    LayerError,
    batches_of,
    measure,
    quantizers_of,
)
from tfcompress.analysis.comparison.records import Agreement, ModelFigures
from tfcompress.analysis.comparison.subjects import ModelOrFile, Subject, subject
from tfcompress.export.conversion.converter import shared_converter
from tfcompress.export.files import gzip_size
from tfcompress.export.flatbuffer.figures import FileFigures, file_figures
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.runtime.latency import LatencyComparison, compare_latency
from tfcompress.export.runtime.metrics import Metric, Scores, score
from tfcompress.model.batches import check_ends, input_batches, line_up
from tfcompress.model.graph import input_structure
from tfcompress.model.labelled import Labels, split_labels
from tfcompress.model.progress import Progress, Verbosity
from tfcompress.tables import Printable, html_of, render_table

# Samples on which tensors of quantized models are compared with float ones.
_LAYER_SAMPLES = 32


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


def compare(
    models: Mapping[str, ModelOrFile],
    data: Any,
    *,
    reference: str | None = None,
    output: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    class_names: Sequence[str] | None = None,
    num_threads: int = 1,
    runs: int = 50,
    verbose: Verbosity = "auto",
) -> CompareReport:
    """Sets models side by side: what each costs, and what it loses.

    Args:
        models: Name → a Keras model (float, compressed, quantized), or the path of a `.tflite`,
            `.keras` or `.h5` file. All take the same inputs.
        data: `(x, y)`, `x` alone, or a `tf.data.Dataset` of either. `y` are class numbers, one-hot
            rows, or targets, or a dict of them by output; see `metrics` for what is computed.
        reference: Name of the model that others are compared with; the first by default.
        output: Name of the output to compare, for models with several.
        metrics: More metrics: name → a function as in scikit-learn, `(labels, predicted classes)`
            (or values, in a regression); it gets the outputs if its second argument is called
            `y_score` or `y_proba`, or if it is a `keras.metrics.Metric`. Accuracy, precision,
            recall, F1, calibration error and confusion matrix (of a regression: errors and R²) are
            there without asking.
        class_names: Class number → name.
        num_threads: Threads of the runtime.
        runs: Rounds of the latency measurement; 0 for none. A Keras model is timed as its file.
        verbose: 0 shows no progress, 1 prints lines where there is no terminal to show a bar in.

    Returns:
        The report. Print it, show it in a notebook, or `save_html` it.

    Raises:
        TypeError: What is neither model nor file.
        ValueError: No model, an unknown reference or output, data or labels that do not fit,
            outputs of several shapes, a file that cannot be read.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> int8 = tfc.quantize(model, calibration_data=x)
        >>> found = tfc.compare({"float": model, "int8": int8}, (x, np.arange(64) % 3), runs=0)
        >>> found["int8"].agreement.top1 > 0.9
        True
    """
    if not isinstance(models, Mapping) or not models:
        raise ValueError(
            "Expected a dict of name → Keras model or path. Received: "
            f"{type(models).__name__ if not isinstance(models, Mapping) else 'an empty dict'}"
        )
    names = list(models)
    base = names[0] if reference is None else reference
    if base not in models:
        raise ValueError(f"Expected a reference among {names}. Received: {reference=}")
    with shared_converter(), Progress("compare", 2 * len(models) + 1, verbose) as progress:
        subjects = []
        for name, model in models.items():
            progress.stage(f"file of {name}")
            subjects.append(subject(name, model))
        x, labels = sample_arrays(data, len(subjects[0].input_names), output)
        outputs = {}
        for each in subjects:
            progress.stage(f"outputs of {each.name}")
            outputs[each.name] = _output(each, each.line_up(x), output)
        progress.stage("layers")
        layers = {
            s.name: _layers(s.model, [array[:_LAYER_SAMPLES] for array in s.line_up(x)])
            for s in subjects
            if s.model is not None and s.kind == "Keras, int8"
        }
    _check_shapes(outputs, base)
    given = None if class_names is None else list(class_names)
    scores = {
        n: None if labels is None else score(labels, y, metrics, given) for n, y in outputs.items()
    }
    files = {s.name: s.data for s in subjects if s.data is not None}
    latency, notes = _latency(files, base, num_threads, runs)
    return CompareReport(
        base,
        len(outputs[base]),
        tuple(
            _figures(s, scores[s.name], _agreement(s.name, base, outputs, scores), latency)
            for s in subjects
        ),
        cpu_name(),
        num_threads,
        runs,
        (*(s.note for s in subjects if s.note), *notes),
        files,
        layers,
    )


def _layers(model: keras.Model, arrays: list[np.ndarray]) -> tuple[LayerError, ...]:
    """What rounding does to each tensor; nothing where no range is known."""
    if not quantizers_of(model):
        return ()
    errors, _, _ = measure(model, batches_of(model, line_up(arrays, input_structure(model))))
    return tuple(errors)


def _agreement(
    name: str, base: str, outputs: Mapping[str, np.ndarray], scores: Mapping[str, Scores | None]
) -> Agreement:
    found, own = agreement(outputs[base], outputs[name]), scores[name]
    # The largest of several targets is no class.
    is_regression = own is not None and own.accuracy is None
    return dataclasses.replace(found, top1=None) if is_regression else found


def agreement(expected: np.ndarray, found: np.ndarray) -> Agreement:
    """Compares outputs with those of a reference."""
    a, b = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    top1 = None
    if a.ndim > 1 and a.shape[-1] > 1:
        top1 = float(np.mean(a.argmax(-1) == b.argmax(-1)))
    noise, signal = float(np.sum((a - b) ** 2)), float(np.sum(a**2))
    snr = math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
    difference = np.abs(a - b)
    return Agreement(top1, snr, float(difference.max(initial=0)), float(difference.mean()))


def cpu_name() -> str:
    """Name of the processor."""
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _metric_cells(scores: Scores | None) -> dict[str, str]:
    if scores is None:
        return {}
    cells: dict[str, str] = {}
    for field, head in (
        ("accuracy", "accuracy"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("f1", "F1"),
    ):
        value = getattr(scores, field)
        if value is not None:
            cells[head] = f"{value:.2%}"
    for field, head in (
        ("calibration_error", "calibration error"),
        ("mean_absolute_error", "mean abs. error"),
        ("root_mean_squared_error", "RMSE"),
        ("largest_error", "largest error"),
        ("r2", "R²"),
    ):
        value = getattr(scores, field)
        if value is not None:
            cells[head] = f"{value:.4f}"
    return cells | {name: f"{value:.4f}" for name, value in scores.metrics.items()}


def sample_arrays(
    data: Any, num_inputs: int, output: str | None = None
) -> tuple[Any, np.ndarray | None]:
    """All samples as arrays, and their labels.

    Args:
        data: Samples with or without labels; of several outputs a dict of labels by output.
        num_inputs: Inputs of the model.
        output: The output whose labels are wanted.
    """
    x, given = split_labels(data, num_inputs)
    labels = None if given is None else _labels_of(given, output)
    if hasattr(x, "shape"):
        return np.asarray(x), labels
    if isinstance(x, Mapping):
        return {name: np.asarray(array) for name, array in x.items()}, labels
    if isinstance(x, list | tuple) and x and len(x) == num_inputs and hasattr(x[0], "shape"):
        return [np.asarray(array) for array in x], labels
    check_ends(x, "x")
    batches = list(input_batches(x, None))
    if not batches:
        raise ValueError("Expected data with at least one sample. Received: none")
    if isinstance(batches[0], Mapping):
        return {n: np.concatenate([np.asarray(b[n]) for b in batches]) for n in batches[0]}, labels
    if isinstance(batches[0], list | tuple):
        columns = zip(*batches, strict=True)
        return [np.concatenate([np.asarray(part) for part in column]) for column in columns], labels
    return np.concatenate([np.asarray(batch) for batch in batches]), labels


def _labels_of(labels: Labels, output: str | None) -> np.ndarray:
    if not isinstance(labels, dict):
        return labels
    name = next(iter(labels)) if output is None and len(labels) == 1 else output
    if name not in labels:
        raise ValueError(
            f"Expected the name of an output with labels: {', '.join(labels)}. Received: "
            f"{output=}. Name one of them"
        )
    return labels[name]


def _output(model: Subject, x: list[np.ndarray], output: str | None) -> np.ndarray:
    outputs = model.run(x)
    # One output needs no name: Keras and converters call it differently.
    name = next(iter(outputs)) if len(outputs) == 1 else output
    if name is None or name not in outputs:
        raise ValueError(
            f"Expected the name of an output of {model.name!r}: {', '.join(sorted(outputs))}. "
            f"Received: {output=}. Name one of them"
        )
    return np.asarray(outputs[name])


def _check_shapes(outputs: Mapping[str, np.ndarray], reference: str) -> None:
    wanted = outputs[reference].shape[1:]
    for name, array in outputs.items():
        if array.shape[1:] != wanted:
            raise ValueError(
                f"Expected models with outputs of one shape. Received: {wanted} from "
                f"{reference!r} and {array.shape[1:]} from {name!r}. Compare models of one task, "
                "or name the output"
            )


def _latency(
    files: Mapping[str, bytes], reference: str, num_threads: int, runs: int
) -> tuple[LatencyComparison | None, tuple[str, ...]]:
    if not runs or not files:
        return None, ()
    base = reference if reference in files else next(iter(files))
    try:
        return compare_latency(files, num_threads, runs, reference=base), ()
    except ValueError as error:
        return None, (f"Latency is not known: {' '.join(str(error).split())}",)


def _figures(
    model: Subject,
    scores: Scores | None,
    with_reference: Agreement,
    latency: LatencyComparison | None,
) -> ModelFigures:
    counts: FileFigures | None = None
    if model.data is not None:
        counts = file_figures(inspect_tflite(model.data))
    is_timed = latency is not None and model.name in latency.medians
    return ModelFigures(
        model.name,
        model.kind,
        scores,
        with_reference,
        None if model.data is None else len(model.data),
        None if model.data is None else gzip_size(model.data),
        None if counts is None else counts.parameters,
        None if counts is None else counts.nonzeros,
        None if counts is None else counts.macs,
        None if counts is None else counts.activation_bytes,
        latency.medians[model.name] if latency is not None and is_timed else None,
        latency.ratios[model.name] if latency is not None and is_timed else None,
    )
