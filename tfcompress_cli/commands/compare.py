"""`tfcompress compare`: models side by side on data."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable

from tfcompress_cli.data import (
    add_data_arguments,
    labels_from,
    not_negative,
    positive,
    samples_for,
)
from tfcompress_cli.models import named_paths
from tfcompress_cli.output import Output, progress_of

SUMMARY = "set models side by side: accuracy, agreement, bytes, latency"
DESCRIPTION = """\
Sets models side by side on data: metrics, agreement with the first, bytes, latency.
Models are .keras, .h5 or .tflite files that take the same input. A name may stand before a path,
as in float=a.keras."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="[NAME=]PATH; the first is the reference"
    )
    parser.add_argument(
        "--output", metavar="NAME", help="the output to compare, of models with several"
    )
    parser.add_argument("--reference", metavar="NAME", help="the first by default")
    parser.add_argument("--labels", metavar="FILE", help="class names, one a line")
    parser.add_argument("--html", metavar="FILE", help="also write a page with tables and plots")
    parser.add_argument("--threads", type=positive, default=1, help="of the runtime (default 1)")
    parser.add_argument(
        "--runs", type=not_negative, default=50, help="rounds of timing; 0 for none (default 50)"
    )
    add_data_arguments(parser, required=True)


def run(options: argparse.Namespace) -> Output:
    """Compares the models."""
    import tfcompress as tfc
    from tfcompress.analysis.comparison.html import check_page_path
    from tfcompress.model.loading import KERAS_SUFFIXES, load_model, sample_shape

    if options.html:
        check_page_path(options.html)
    models: dict = dict(named_paths(options.models))
    for name, path in models.items():
        if path.suffix in KERAS_SUFFIXES:
            models[name] = load_model(path)
        elif path.suffix != ".tflite":
            raise ValueError(f"Expected .keras, .h5 or .tflite files. Received: {str(path)!r}")
    samples = samples_for(options, _shape(models, sample_shape), "test")
    report = tfc.compare(
        models,
        samples.x if samples.y is None else (samples.x, samples.y),
        reference=options.reference,
        output=options.output,
        class_names=labels_from(options.labels) or samples.class_names,
        num_threads=options.threads,
        runs=options.runs,
        verbose=progress_of(options),
    )
    if options.html:
        report.save_html(options.html)
    return Output(str(report), report.to_dict())


def _shape(models: dict, sample_shape: Callable) -> tuple | None:
    """Shape of a sample of the first input."""
    import tfcompress as tfc

    first = next(iter(models.values()))
    if isinstance(first, pathlib.Path):
        return next(iter(tfc.Runner(first).inputs.values())).sample_shape
    return sample_shape(first)
