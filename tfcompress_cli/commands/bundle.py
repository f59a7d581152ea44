"""`tfcompress bundle`: what an app needs beside a `.tflite`."""

from __future__ import annotations

import argparse
import pathlib

from tfcompress_cli.data import labels_from, not_negative
from tfcompress_cli.output import Output

SUMMARY = "write the card and the golden pairs of a .tflite, or an Android module around it"
DESCRIPTION = """\
Writes FILE.json (the card: scales, zero points, labels, versions) and FILE.golden.json
(inputs with the outputs that they must give) beside a .tflite.

With --android FOLDER, a Gradle library module instead: the file and its card as assets,
Kotlin for LiteRT's CompiledModel and Interpreter, a test that replays the golden pairs on
the phone, a script that times it by adb. The card and the pairs that lie beside the file
are taken, unless --labels or --golden ask for others."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("file", metavar="FILE.tflite")
    parser.add_argument("--labels", metavar="FILE", help="class names, one a line")
    parser.add_argument("--golden", type=not_negative, metavar="N", help="pairs (default 4)")
    parser.add_argument("--android", metavar="FOLDER", help="write a Gradle library module there")
    parser.add_argument(
        "--package", metavar="NAME", help="its Kotlin package (default com.example.model)"
    )


def run(options: argparse.Namespace) -> Output:
    """Writes the bundle."""
    from tfcompress.export.bundle.android import write_android
    from tfcompress.export.bundle.files import read_bundle, write_bundle

    if options.package is not None and options.android is None:
        raise ValueError("Expected --package together with --android. Received: --package alone.")
    pairs = 4 if options.golden is None else options.golden
    labels = labels_from(options.labels)
    if options.android is None:
        card = write_bundle(options.file, labels=labels, num_golden=pairs)
        return Output(f"written: {card}", {"card": str(card)})
    card_path = pathlib.Path(options.file).with_suffix(".json")
    is_written = options.labels is None and options.golden is None and card_path.is_file()
    folder = write_android(
        options.file,
        options.android,
        package=options.package or "com.example.model",
        bundle=read_bundle(options.file) if is_written else None,
        labels=labels,
        num_golden=pairs,
    )
    return Output(f"written: {folder}", {"folder": str(folder)})
