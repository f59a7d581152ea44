"""`compare`: any mix of Keras models and `.tflite` files side by side on data."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.analysis.comparison.layer_errors import (
    LayerError,
    batches_of,
    measure,
    quantizers_of,
)
from tfcompress.analysis.comparison.records import Agreement, ModelFigures
from tfcompress.analysis.comparison.report import CompareReport
from tfcompress.analysis.comparison.samples import sample_arrays
from tfcompress.analysis.comparison.subjects import ModelOrFile, Subject, subject
from tfcompress.export.conversion.converter import shared_converter
from tfcompress.export.files import gzip_size
from tfcompress.export.flatbuffer.figures import FileFigures, file_figures
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.runtime.latency import LatencyComparison, compare_latency
from tfcompress.export.runtime.metrics import Metric, Scores, score
from tfcompress.model.batches import line_up
from tfcompress.model.graph import input_structure
from tfcompress.model.progress import Progress, Verbosity

# Samples on which tensors of quantized models are compared with float ones.
_LAYER_SAMPLES = 32


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
