"""`tfcompress inspect`: what is in a `.tflite`."""

from __future__ import annotations

import argparse
import shutil
import sys

from tfcompress_cli.output import Output

SUMMARY = "list what is in a .tflite: operators, tensors, scales, zeros, bytes per layer"
DESCRIPTION = """\
Lists what is in a .tflite: operators, tensors, types, scales, zeros, bytes per layer,
and what XNNPACK takes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("file", metavar="FILE.tflite")


def run(options: argparse.Namespace) -> Output:
    """Describes the file."""
    from tfcompress.tools.inspect_tflite import describe

    columns = shutil.get_terminal_size((120, 24)).columns
    # A pipe has no width, so nothing is cut.
    width = columns if sys.__stdout__ is not None and sys.__stdout__.isatty() else 240
    return Output(*describe(options.file, width))
