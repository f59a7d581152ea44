"""`tfcompress bundle`: what an app needs beside a `.tflite`."""

from __future__ import annotations

import argparse

from tfcompress_cli.data import labels_from, not_negative
from tfcompress_cli.output import Output

SUMMARY = "write the card and the golden pairs of a .tflite"
DESCRIPTION = """\
Writes FILE.json (the card: scales, zero points, labels, versions) and FILE.golden.json
(inputs with the outputs that they must give) beside a .tflite."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("file", metavar="FILE.tflite")
    parser.add_argument("--labels", metavar="FILE", help="class names, one a line")
    parser.add_argument(
        "--golden", type=not_negative, default=4, metavar="N", help="pairs (default 4)"
    )


def run(options: argparse.Namespace) -> Output:
    """Writes the bundle."""
    from tfcompress.export.bundle.files import write_bundle

    card = write_bundle(options.file, labels=labels_from(options.labels), num_golden=options.golden)
    return Output(f"written: {card}", {"card": str(card)})
