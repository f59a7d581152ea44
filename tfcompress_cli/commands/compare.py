"""`tfcompress compare`: models side by side on data."""

from __future__ import annotations

import argparse

from tfcompress_cli.data import add_data_arguments, not_negative, positive
from tfcompress_cli.output import Output

SUMMARY = "set models side by side: accuracy, agreement, bytes, latency"
DESCRIPTION = """\
Sets models side by side on data: accuracy, agreement with the first, bytes, latency.
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
    parser.add_argument("--threads", type=positive, default=1, help="of the runtime (default 1)")
    parser.add_argument(
        "--runs", type=not_negative, default=50, help="rounds of timing; 0 for none (default 50)"
    )
    add_data_arguments(parser, required=True)


def run(options: argparse.Namespace) -> Output:
    """Compares the models."""
    from tfcompress.tools.compare import compare

    if len(options.models) != 2:
        raise ValueError(f"Expected the paths of two models. Received: {len(options.models)}")
    found = compare(
        *options.models,
        options.data,
        data_dir=options.data_dir,
        scale=options.scale,
        num_samples=options.samples,
        output=options.output,
        num_threads=options.threads,
        runs=options.runs,
    )
    return Output(str(found), found)
