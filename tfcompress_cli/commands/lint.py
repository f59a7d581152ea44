"""`tfcompress lint`: operators that run slowly on a phone's CPU."""

from __future__ import annotations

import argparse
import pathlib

from tfcompress_cli.output import Output

SUMMARY = "name the operators that run slowly on a phone, and what to use instead"
DESCRIPTION = """\
Names the operators that XNNPACK leaves to the interpreter, or that run in float, what
they take, and what to use instead. A Keras model may be untrained: it is
quantized on random numbers first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="a .keras, .h5 or .tflite file")
    parser.add_argument(
        "--config", default="int8", metavar="PRESET", help="a scheme by name (default int8)"
    )
    parser.add_argument("--no-timing", action="store_true", help="do not time the operators")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where there are any")


def run(options: argparse.Namespace) -> Output:
    """Looks for slow operators."""
    import tfcompress as tfc
    from tfcompress.export.files import read_tflite
    from tfcompress.export.lint import lint_file
    from tfcompress.files.loading import check_loads
    from tfcompress.model.loading import load_model

    path = pathlib.Path(options.model)
    measure = not options.no_timing
    if path.suffix == ".tflite":
        data = read_tflite(path)
        check_loads(data, repr(str(path)))
        found = lint_file(data, [], path.name, measure=measure)
    else:
        found = tfc.lint(load_model(path), options.config, measure=measure)
    return Output(str(found), found, int(options.strict and bool(found.entries)))
