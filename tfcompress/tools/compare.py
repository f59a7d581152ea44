"""Compares two model files on data: accuracy, agreement, size and latency.

Latency is measured for `.tflite` files, on this machine's CPU, in turns.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

from tfcompress.export.files import gzip_size
from tfcompress.export.runtime.latency import LatencyComparison, Ratio, compare_latency
from tfcompress.export.runtime.runner import Runner
from tfcompress.tools.datasets import load

_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class ModelFigures:
    """Figures of one file.

    Attributes:
        path: Its path.
        accuracy: Top-1 accuracy in 0..1.
        num_bytes: Size of the file.
        gzip_bytes: Its size under gzip, level 9.
        latency_ms: Median milliseconds of one sample; `None` where it was not measured.
    """

    path: str
    accuracy: float
    num_bytes: int
    gzip_bytes: int
    latency_ms: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        first: Figures of the first file.
        second: Figures of the second file.
        num_samples: Number of samples compared.
        top1_agreement: Fraction of samples on which both predict the same class.
        max_difference: Largest absolute difference of an output value.
        mean_difference: Mean absolute difference.
        latency_ratio: Second over first, with quartiles; `None` where it was not measured.
        latency_note: Why it was not measured, or empty.
    """

    first: ModelFigures
    second: ModelFigures
    num_samples: int
    top1_agreement: float
    max_difference: float
    mean_difference: float
    latency_ratio: Ratio | None
    latency_note: str

    def __str__(self) -> str:
        rows = [
            ("", "A", "B", "B against A"),
            ("accuracy", *_each(self, lambda f: f"{f.accuracy:.2%}"), self._accuracy_change()),
            ("bytes", *_each(self, lambda f: f"{f.num_bytes:,}"), self._ratio("num_bytes")),
            ("gzipped", *_each(self, lambda f: f"{f.gzip_bytes:,}"), self._ratio("gzip_bytes")),
            (
                "latency",
                *_each(self, lambda f: f"{f.latency_ms:.3f} ms" if f.latency_ms else "n/a"),
                f"x {self.latency_ratio}" if self.latency_ratio else "n/a",
            ),
            ("top-1 agreement", "", "", f"{self.top1_agreement:.2%}"),
            ("output difference", "", "", f"max {self.max_difference:.4g}"),
            ("", "", "", f"mean {self.mean_difference:.4g}"),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        heading = f"A {self.first.path}\nB {self.second.path}\n{self.num_samples} samples"
        note = f"\nlatency n/a: {self.latency_note}" if self.latency_note else ""
        return "\n".join([heading, *lines]) + note

    def _accuracy_change(self) -> str:
        return f"{(self.second.accuracy - self.first.accuracy) * 100:+.2f} points"

    def _ratio(self, field: str) -> str:
        return f"x {getattr(self.second, field) / getattr(self.first, field):.3f}"


def compare(
    first: str | os.PathLike,
    second: str | os.PathLike,
    data: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    scale: float = 1.0,
    num_samples: int | None = None,
    output: str | None = None,
    num_threads: int = 1,
    runs: int = 50,
) -> Comparison:
    """Compares two classifiers on the test part of a data set.

    Args:
        first: A `.keras` or `.tflite` file with one input.
        second: Another one.
        data: Name or path of a data set, as `datasets.load` takes it.
        data_dir: Folder of the data sets.
        scale: Factor on the pixels, for models that expect another scale than the data set's.
        num_samples: How many test samples to use, at most; all by default.
        output: Name of the output to compare; may be left out where there is one.
        num_threads: Threads of the runtime for the latency.
        runs: Rounds of the latency measurement; 0 for none.

    Raises:
        ValueError: If a file is missing or of another kind, or data and models do not fit.
    """
    paths = [_model_path(first), _model_path(second)]
    x, y = load(data, data_dir)[1]
    x, y = x[:num_samples] * np.float32(scale), y[:num_samples]
    predictions = [_predict(path, x, output) for path in paths]
    a, b = predictions
    if a.shape != b.shape:
        raise ValueError(
            f"Expected models with outputs of one shape. Received: {a.shape[1:]} from "
            f"{str(paths[0])!r} and {b.shape[1:]} from {str(paths[1])!r}. Compare models of one "
            "task, or name the output"
        )
    latency, note = _latency(paths, num_threads, runs)
    figures = [
        ModelFigures(
            str(path),
            float(np.mean(prediction.argmax(-1) == y)),
            path.stat().st_size,
            gzip_size(path.read_bytes()),
            latency.medians[key] if latency else None,
        )
        for key, path, prediction in zip("AB", paths, predictions, strict=True)
    ]
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return Comparison(
        first=figures[0],
        second=figures[1],
        num_samples=len(y),
        top1_agreement=float(np.mean(a.argmax(-1) == b.argmax(-1))),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        latency_ratio=latency.ratios["B"] if latency else None,
        latency_note=note,
    )


def _each(comparison: Comparison, text: Callable[[ModelFigures], str]) -> tuple[str, str]:
    return text(comparison.first), text(comparison.second)


def _model_path(path: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix not in (".keras", ".tflite"):
        raise ValueError(
            f"Expected a .keras or .tflite file. Received: {str(path)!r}. Save the model with "
            "model.save('model.keras'), or export it"
        )
    if not path.is_file():
        raise ValueError(
            f"Expected a model file. Received: {str(path)!r}, which does not exist. Check the path"
        )
    return path


def _predict(path: pathlib.Path, x: np.ndarray, output: str | None) -> np.ndarray:
    outputs = _predict_tflite(path, x) if path.suffix == ".tflite" else _predict_keras(path, x)
    name = next(iter(outputs)) if output is None and len(outputs) == 1 else output
    # One output needs no name: Keras and converters call it differently.
    if len(outputs) == 1 and name not in outputs:
        name = next(iter(outputs))
    if name not in outputs:
        raise ValueError(
            f"Expected the name of an output of {str(path)!r}: {', '.join(sorted(outputs))}. "
            f"Received: {output=}. Name one of them with --output"
        )
    prediction = np.asarray(outputs[name])
    if prediction.ndim != 2 or prediction.shape[1] < 2:
        raise ValueError(
            "Expected a classifier, with an output of shape (batch, classes). Received: "
            f"{prediction.shape} from {str(path)!r}. Name another output with --output"
        )
    return prediction


def _predict_tflite(path: pathlib.Path, x: np.ndarray) -> dict[str, np.ndarray]:
    runner = Runner(path)
    shapes = [info.sample_shape for info in runner.inputs.values()]
    _check_fit(path, shapes, x)
    return runner.predict([x])


def _predict_keras(path: pathlib.Path, x: np.ndarray) -> dict[str, np.ndarray]:
    import keras

    # Registers the layers that a compressed model is made of.
    import tfcompress  # noqa: F401

    try:
        # In safe mode no code of the file is run.
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    except Exception as error:
        raise ValueError(
            f"Expected a model that Keras can load. Received: {str(path)!r}: "
            f"{type(error).__name__}: {error}. Save it again with model.save('model.keras')"
        ) from error
    _check_fit(path, shapes, x)
    outputs = model.predict(x, batch_size=_BATCH_SIZE, verbose=0)
    if isinstance(outputs, dict):
        return outputs
    if isinstance(outputs, list | tuple):
        return dict(zip(model.output_names, outputs, strict=True))
    return {model.output_names[0]: outputs}


def _check_fit(path: pathlib.Path, shapes: list[tuple], x: np.ndarray) -> None:
    if len(shapes) != 1:
        raise ValueError(
            f"Expected a model with one input. Received: {str(path)!r} with {len(shapes)}"
        )
    (shape,) = shapes
    if len(shape) != x.ndim - 1 or any(
        expected not in (None, received)
        for expected, received in zip(shape, x.shape[1:], strict=True)
    ):
        raise ValueError(
            f"Expected samples of shape {shape}, which {str(path)!r} takes. Received: data of "
            f"shape {x.shape[1:]}. Choose the data set that the model was trained on"
        )


def _latency(
    paths: list[pathlib.Path], num_threads: int, runs: int
) -> tuple[LatencyComparison | None, str]:
    if not runs:
        return None, "not asked for"
    if any(path.suffix == ".keras" for path in paths):
        return None, "Keras is not the phone's runtime; export to .tflite to time it"
    return compare_latency(dict(zip("AB", paths, strict=True)), num_threads, runs), ""
