"""`accuracy_control`: quantizes everything, then takes back the fewest layers, worst first."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfcompress.analysis.measuring.confidence import Drop, paired_drop
from tfcompress.analysis.measuring.files import export_and_run, predict
from tfcompress.analysis.measuring.metrics import Metric, MetricLike, Mode, resolve_metric
from tfcompress.analysis.measuring.samples import Samples, read_samples
from tfcompress.analysis.options.options import PRESETS
from tfcompress.analysis.search.arguments import (
    check_finite,
    check_max_drop,
    check_other_data,
    check_other_samples,
)
from tfcompress.analysis.sensitivity.sensitivity import sensitivity
from tfcompress.analysis.sensitivity.table import Sensitivity
from tfcompress.export.conversion.converter import shared_converter
from tfcompress.model.batches import check_ends, check_repeatable
from tfcompress.model.compilation import functional_as_compiled
from tfcompress.model.graph import Graph
from tfcompress.model.paths import graph_paths
from tfcompress.model.progress import Progress, Verbosity
from tfcompress.quantization.config import QuantizationConfig, as_config
from tfcompress.quantization.quantize import plan, quantize
from tfcompress.quantization.quantized_model import QuantizedModel
from tfcompress.quantization.schemes import Scheme
from tfcompress.tables import render_table

# Samples of the calibration data that are compared with the validation data.
_COMPARED = 256


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One configuration that was measured as a file.

    Attributes:
        restored: Layer → what it was taken back to, `"int8"` or `"float"`.
        drop: Drop of the metric.
        num_bytes: Size of the file.
        gzip_bytes: Its size under gzip.
    """

    restored: Mapping[str, str]
    drop: Drop
    num_bytes: int
    gzip_bytes: int


@dataclasses.dataclass(frozen=True)
class AccuracyControl:
    """What `accuracy_control` found. Print it.

    Attributes:
        model: The quantized model, to be exported as it is.
        config: The configuration that gives it.
        restored: Layer → what it was taken back to, `"int8"` or `"float"`; worst first.
        baseline: The metric of the float model.
        metric: Name of the metric.
        max_drop: What was allowed, in units of the metric.
        drop: What the model's file loses.
        attempts: Every configuration that was measured, in the order of the layers taken back.
        sensitivity: What each layer costs alone.
    """

    model: QuantizedModel
    config: QuantizationConfig
    restored: Mapping[str, str]
    baseline: float
    metric: str
    max_drop: float
    drop: Drop
    attempts: tuple[Attempt, ...]
    sensitivity: Sensitivity

    def __str__(self) -> str:
        rows = []
        for attempt in self.attempts:
            taken = ", ".join(f"{name} → {kind}" for name, kind in attempt.restored.items())
            drop = attempt.drop
            rows.append(
                (taken or "none", drop.mean, drop.bound, attempt.num_bytes, attempt.gzip_bytes)
            )
        title = f"{self.metric} of the float model {self.baseline:.4g}, max_drop {self.max_drop:g}"
        columns = ("taken back", "drop", f"{self.drop.confidence:.0%} bound", "bytes", "gzip")
        text = render_table(title, columns, rows, width=160)
        names = ", ".join(self.restored) or "no layer"
        text += f"Taken back: {names}.\n"
        if not self.drop.is_sure(self.max_drop):
            text += (
                f"With {self.drop.samples} samples the bound is wider than half of max_drop: "
                "decided by the mean.\n"
            )
        return text


def accuracy_control(
    model: keras.Model,
    validation: Any,
    *,
    calibration_data: Any,
    max_drop: float = 0.01,
    config: QuantizationConfig | Scheme | str = "int8",
    metric: MetricLike = None,
    mode: Mode = "auto",
    verbose: Verbosity = "auto",
) -> AccuracyControl:
    """Quantizes a model and takes back the fewest layers for which a metric holds.

    Layers are ordered by what each of them costs alone (see `sensitivity`, on the calibration
    data), worst first. Layers of less than 8 bits go back to int8 first; if that is not enough,
    layers stay in float. How many is found by doubling and bisection, and each step is exported,
    run by LiteRT and compared with the float model on the same samples. Nothing is trained.

    Args:
        model: A built float model.
        validation: `(x, y)` as arrays, or batches; other samples than the calibration data.
        calibration_data: As for `quantize`.
        max_drop: How much the metric may lose, in its units, >= 0: 0.01 is a point of accuracy.
            The 95 % confidence bound of the paired drop has to hold it, or the mean where the
            samples are too few for a bound as narrow as that.
        config: What is quantized to.
        metric: By default the first compiled metric, else accuracy of labels that are classes; see
            `sensitivity`.
        mode: Whether more of the metric is better (`"max"`) or less (`"min"`). By default the
            class of the metric says so, then its name.
        verbose: 0 shows no progress, 1 prints lines where there is no terminal to show a bar in.

    Returns:
        The quantized model, with what was taken back and every attempt. Print it.

    Raises:
        TypeError: Not a Keras model, or data that cannot be read.
        ValueError: `max_drop` is negative, `validation` has no labels or is the calibration data,
            neither a metric nor labels that accuracy could be taken of, a metric of which nothing
            tells whether more is better, or the drop is larger with all kernels in float.
    """
    check_max_drop(max_drop)
    check_other_data(validation, calibration_data, "calibration_data")
    check_ends(validation, "validation")
    check_repeatable(calibration_data, "calibration_data")
    model = functional_as_compiled(model, calibration_data)
    held = read_samples(validation, model)
    found = resolve_metric(metric, model, mode).of(held, model)
    check_finite(held, "validation")
    scored = read_samples(calibration_data, model, _COMPARED)
    check_other_samples(held, scored, "calibration_data")
    work = _Control(model, as_config(config), held, found, calibration_data)
    baseline = found.value(held.labels, work.reference)
    table = sensitivity(
        model,
        calibration_data,
        options=sorted({"int8", *(f"int{bits}" for bits in work.bits.values())}),
        verbose=verbose,
    )
    steps = work.steps(table)
    with shared_converter(), Progress("accuracy control", len(steps), verbose) as progress:
        index = _first_that_holds(
            len(steps), lambda i: work.attempt(i, steps[i], progress.step).drop.holds(max_drop)
        )
        if index is None:
            last = work.attempts[len(steps) - 1]
            raise ValueError(
                f"Expected a configuration that loses at most {max_drop:g} of {found.name}. "
                f"Received: a drop of {last.drop.mean:.4g} (bound {last.drop.bound:.4g}) with all "
                f"of {len(steps[-1])} kernels taken back. Allow more, or quantize and train."
            )
        attempts = tuple(work.attempts[i] for i in sorted(work.attempts))
        chosen = work.attempts[index]
        quantized = work.quantized(chosen.restored)
    return AccuracyControl(
        quantized,
        work.config_with(chosen.restored),
        chosen.restored,
        baseline,
        found.name,
        max_drop,
        chosen.drop,
        attempts,
        table,
    )


class _Control:
    """The attempts of one call."""

    def __init__(
        self,
        model: keras.Model,
        config: QuantizationConfig,
        held: Samples,
        metric: Metric,
        calibration_data: Any,
    ):
        self.model, self.config, self.held, self.metric = model, config, held, metric
        self.calibration_data = calibration_data
        self.reference = predict(model, held)
        self.attempts: dict[int, Attempt] = {}
        operations = {path: op for op, path in graph_paths(Graph.from_model(model)).items()}
        self.bits: dict[str, int] = {}
        for entry in plan(model, config):
            scheme = config.scheme_for(operations[entry.name], entry.name)
            if entry.weights and scheme is not None:
                bits = scheme.weights.quantizer.num_bits(scheme.weights)
                self.bits[entry.name] = max(b for b in PRESETS if b <= max(bits, 2))

    def steps(self, table: Sensitivity) -> list[dict[str, str]]:
        """What is taken back at each step: nothing, the worst, the worst two, and so on."""
        found: list[dict[str, str]] = [{}]
        low = {n: table.row(n, f"int{b}").divergence for n, b in self.bits.items() if b < 8}
        for name in sorted(low, key=lambda n: -low[n]):
            found.append({**found[-1], name: "int8"})
        costs = {name: table.row(name, "int8").divergence for name in self.bits}
        for name in sorted(costs, key=lambda n: -costs[n]):
            found.append({**found[-1], name: "float"})
        return found

    def config_with(self, restored: Mapping[str, str]) -> QuantizationConfig:
        """The configuration with some layers taken back."""
        schemes = {name: None if kind == "float" else kind for name, kind in restored.items()}
        return dataclasses.replace(
            self.config, by_name={**schemes, **self.config.by_name, **schemes}
        )

    def quantized(self, restored: Mapping[str, str]) -> QuantizedModel:
        """The quantized model with some layers taken back."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Nothing of .* is quantized", UserWarning)
            return quantize(
                self.model, self.config_with(restored), calibration_data=self.calibration_data
            )

    def attempt(
        self, index: int, restored: Mapping[str, str], advance: Callable[[str], None]
    ) -> Attempt:
        """Measures a step as a file, once."""
        if index not in self.attempts:
            measured = export_and_run(self.quantized(restored), self.held)
            drop = paired_drop(self.metric, self.held.labels, self.reference, measured.outputs)
            report = measured.report
            self.attempts[index] = Attempt(restored, drop, report.num_bytes, report.gzip_bytes)
            advance(f"{len(restored)} taken back: drop {drop.mean:.4g}")
        return self.attempts[index]


def _first_that_holds(count: int, holds: Callable[[int], bool]) -> int | None:
    """The first index whose test holds, of tests that hold from some index on."""
    low, high, step = -1, 0, 1
    while not holds(high):
        if high == count - 1:
            return None
        low, high, step = high, min(high + step, count - 1), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
