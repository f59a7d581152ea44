"""`tfcompress report`: the card of an exported file, read and checked."""

from __future__ import annotations

import argparse

from tfcompress_cli.output import Output

SUMMARY = "show the card of an exported file, and replay its golden pairs"
DESCRIPTION = """\
Reads FILE.json beside a .tflite, checks that both belong together, replays the golden
pairs and shows the figures of the export."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("file", metavar="FILE.tflite")


def run(options: argparse.Namespace) -> Output:
    """Reads and replays."""
    import json

    from tfcompress.export.bundle.files import check_golden, read_bundle

    bundle = read_bundle(options.file)
    content = dict(bundle.metadata)
    content["golden_difference"] = check_golden(options.file) if bundle.golden else None
    return Output(json.dumps(content, indent=2, ensure_ascii=False), content)
