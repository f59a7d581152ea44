"""`tfcompress benchmark`: latency of `.tflite` files in turns."""

from __future__ import annotations

import argparse

from tfcompress_cli.data import positive
from tfcompress_cli.models import named_paths
from tfcompress_cli.output import Output

SUMMARY = "time .tflite files side by side on this machine's CPU"
DESCRIPTION = """\
Times .tflite files in turns on this machine's CPU, by LiteRT with XNNPACK, one sample
at a time: medians in milliseconds, and the ratio to the first with its quartiles."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="[NAME=]PATH.tflite; the first is the reference"
    )
    parser.add_argument("--threads", type=positive, default=1, help="of the runtime (default 1)")
    parser.add_argument("--runs", type=positive, default=100, help="rounds (default 100)")


def run(options: argparse.Namespace) -> Output:
    """Times the files."""
    import dataclasses

    import tfcompress as tfc
    from tfcompress.analysis.comparison.compare import cpu_name

    found = tfc.compare_latency(named_paths(options.files), options.threads, options.runs)
    content = {**dataclasses.asdict(found), "cpu": cpu_name()}
    return Output(f"{found}\nCPU: {content['cpu']}", content)
