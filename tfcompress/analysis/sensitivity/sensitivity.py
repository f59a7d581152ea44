"""`sensitivity`: what every option of every layer costs, measured one at a time."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Container, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.analysis.measuring.identity import identity_of
from tfcompress.analysis.measuring.measures import NAMES, divergence, output_kinds
from tfcompress.analysis.measuring.metrics import MetricLike, Mode, resolve_metric
from tfcompress.analysis.measuring.samples import Samples, read_samples
from tfcompress.analysis.options.changes import Candidate, Changes, round_activation
from tfcompress.analysis.options.options import DEFAULT_OPTIONS, Option, parse_options
from tfcompress.analysis.sensitivity.prefix import Prefix, rounding_inputs
from tfcompress.analysis.sensitivity.prescreen import fisher_estimates
from tfcompress.analysis.sensitivity.table import Row, Sensitivity, read_table
from tfcompress.distillation.checksum import checksum_of_teacher
from tfcompress.model.compilation import functional_as_compiled
from tfcompress.model.graph import check_functional
from tfcompress.model.paths import graph_paths
from tfcompress.model.progress import Progress, Verbosity


def sensitivity(
    model: keras.Model,
    data: Any,
    *,
    options: Sequence[str] = DEFAULT_OPTIONS,
    metric: MetricLike = None,
    mode: Mode = "auto",
    samples: int = 256,
    max_measured: int = 200,
    path: str | os.PathLike | None = None,
    verbose: Verbosity = "auto",
) -> Sensitivity:
    """Measures what each option of each layer costs, with everything else in float.

    An option is applied to one layer of the float model, and the outputs on `samples` samples are
    compared with those of the model as it is. Only the calls behind the layer run again: the
    tensors before it are kept. Channels that can only go together are one row (see `Dependencies`).

    - `"int8"`, `"int4"`, `"int2"`: the layer's weights on the grid of that many bits, and its input
      on an int8 grid; for layers whose weights a file can hold so (see `plan`);
    - `"sparsity=0.5"`: half of its weights, those of least size, are zero;
    - `"channels=0.75"`: three quarters of the channels stay, those of the largest weights. Numbers
      of channels are multiples of 8, of 4 in layers below 32, any below 16; the row names the share
      that stays, and shares that come to the same number are one row;
    - `"rank=0.5"`: two factors that take half of the multiply-accumulates.

    Nothing is trained, so a row says what an option costs before finetuning.

    Args:
        model: A built model, not quantized yet; it is left as it was.
        data: `(x, y)` or `x` as arrays, or batches of them (`tf.data.Dataset`, `PyDataset`).
            Labels are needed for `metric` only.
        options: What to try, by name; shares lie in (0, 1).
        metric: Also measure a metric's drop: a name (that of a metric that the model was compiled
            with, as `evaluate` prints it, or of a Keras metric), a Keras metric, or a function of
            labels and predictions that returns one number, or one per sample. A name or a Keras
            metric has the value that `evaluate` gives, but for `"accuracy"` of one output channel
            that is a logit, which is taken at 0.
        mode: Whether more of the metric is better (`"max"`) or less (`"min"`). By default the
            class of the metric says so, then its name.
        samples: How many samples, 256 to 512 as a rule.
        max_measured: Of more candidates than these, a pre-screen estimates which cost the most
            (see `Row.measured`), and only so many are measured.
        path: A JSON file that holds each row as soon as it is known. An interrupted run that is
            started again with the same file continues.
        verbose: 0 shows no progress, 1 prints lines where there is no terminal to show a bar in.

    Returns:
        The table. Print it, worst first.

    Raises:
        TypeError: Not a Keras model, or data that cannot be read.
        ValueError: A model without a layer that an option applies to, a `metric` without labels,
            data that do not fit, a `path` with rows of another model or other data, or `mode` is
            `"auto"`, and neither class nor name of the metric tells, or a `path` and a metric that
            cannot be told from another one, for it holds more than code, plain values and arrays.

    Example:
        >>> model = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(4)]
        ... )
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> table = tfc.sensitivity(model, x, options=["int8", "int4"], verbose=0)
        >>> len(table.rows), table.rows[0].option
        (4, 'int4')
    """
    chosen = parse_options(options)
    model = functional_as_compiled(model, data)
    check_functional(model)
    held = read_samples(data, model, samples)
    found = None if metric is None else resolve_metric(metric, model, mode).of(held, model)
    changes = Changes(model, chosen)
    if not changes.candidates:
        raise ValueError(
            f"Expected a model with layers that {', '.join(map(str, chosen))} apply to. Received: "
            f"{model.name!r}, in which there is none. Skipped: {changes.skipped}."
        )
    paths = graph_paths(changes.graph)
    origin = {
        "model": str(checksum_of_teacher(model)),
        # Rows are named by them, and a model that is built again gets other ones from Keras.
        "names of layers": ", ".join(p for op, p in paths.items() if getattr(op, "weights", ())),
        "data": held.checksum,
        "metric": "" if found is None else found.name,
    }
    if found is not None and path is not None:
        # Its name alone does not tell a metric from another one.
        found_again = dataclasses.replace(found, name="")
        origin["code of the metric"] = identity_of(found_again, "metric")
    known = _known_rows(path, origin)
    return _measure(changes, held, found, origin, known, max_measured, path, verbose)


def _measure(
    changes: Changes,
    held: Samples,
    metric: Any,
    origin: dict[str, str],
    known: dict[tuple[str, str], Row],
    max_measured: int,
    path: Any,
    verbose: Verbosity,
) -> Sensitivity:
    model = changes.model
    prefix = Prefix(changes.graph, held.inputs)
    reference = prefix.outputs()
    kinds = output_kinds(model, reference)
    baseline = None if metric is None else metric.value(held.labels, _one(reference))
    measured = "; ".join(dict.fromkeys(NAMES[kind] for kind in kinds))
    rows = dict(known)
    asked = {str(candidate.option) for candidate in changes.candidates}

    def table(keys: Container[str] | None = None) -> Sensitivity:
        chosen = [row for row in rows.values() if keys is None or row.option in keys]
        ordered = sorted(chosen, key=lambda r: -r.divergence)
        return Sensitivity(
            model.name,
            tuple(ordered),
            measured,
            len(held),
            {**origin, "baseline": "" if baseline is None else f"{baseline:.9g}"},
            changes.skipped,
        )

    left = [c for c in changes.candidates if (c.target, str(c.option)) not in known]
    estimates = {}
    if len(changes.candidates) > max_measured:
        estimates = fisher_estimates(changes, left, held, kinds)
        left.sort(key=lambda c: -estimates[c])
        left = sorted(left[: max(0, max_measured - len(known))], key=lambda c: c.position)
    with Progress("sensitivity", len(left), verbose) as progress:
        for candidate in left:
            prefix.advance(candidate.position)
            outputs = _outputs_with(changes, candidate, prefix)
            parts = zip(kinds, reference, outputs, strict=True)
            cost = float(sum(divergence(*part).mean() for part in parts))
            drop = None
            if metric is not None:
                drop = metric.drop(baseline, metric.value(held.labels, _one(outputs)))
            rows[candidate.target, str(candidate.option)] = _row(candidate, cost, drop, True)
            if path is not None:
                table().save(path)
            progress.step(f"{candidate.target} {candidate.option}")
    _add_estimates(rows, estimates)
    if path is not None:
        # The file keeps what calls with other options have measured.
        table().save(path)
    return table(asked)


def _outputs_with(changes: Changes, candidate: Candidate, prefix: Prefix) -> list[np.ndarray]:
    with changes.applied(candidate):
        if candidate.option.kind != "bits":
            return prefix.outputs()
        return prefix.outputs(rounding_inputs(candidate.nodes, round_activation))


def _add_estimates(rows: dict[tuple[str, str], Row], estimates: dict[Candidate, float]) -> None:
    """Rows for what was not measured: estimates, on the scale of what was."""
    ratios = [
        rows[c.target, str(c.option)].divergence / value
        for c, value in estimates.items()
        if value > 0 and (c.target, str(c.option)) in rows
    ]
    scale = float(np.median(ratios)) if ratios else 1.0
    for candidate, value in estimates.items():
        key = candidate.target, str(candidate.option)
        if key not in rows:
            rows[key] = _row(candidate, scale * value, None, False)


def _row(candidate: Candidate, cost: float, drop: float | None, measured: bool) -> Row:
    return Row(candidate.target, str(candidate.option), cost, drop, candidate.parameters, measured)


def _known_rows(path: Any, origin: dict[str, str]) -> dict[tuple[str, str], Row]:
    if path is None or not pathlib.Path(path).exists():
        return {}
    table = read_table(path)
    for what, wanted in origin.items():
        if table.origin.get(what) != wanted:
            raise ValueError(
                f"Expected {os.fspath(path)!r} to hold rows of the same {what}. Received: rows of "
                "other ones. Give another path, or remove the file."
            )
    return {(row.target, row.option): row for row in table.rows if row.measured}


def _one(outputs: list[np.ndarray]) -> Any:
    return outputs[0] if len(outputs) == 1 else outputs


__all__ = ["Option", "sensitivity"]
