"""Entry point of `tfcompress`: parses the command line, runs a command, prints its output.

Exit codes: 0, it worked; 1, something unforeseen; 2, a wrong call, or a file or data that cannot
be used, with one line that says why; 130, interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import pathlib
import runpy
import sys
import traceback
from collections.abc import Sequence

from tfcompress_cli.commands import COMMANDS
from tfcompress_cli.quiet import quiet

_DESCRIPTION = """Training-time compression for Keras 3 on TensorFlow: looks at models, compares,
compresses and times them. `tfcompress COMMAND --help` describes a command."""


class _Parser(argparse.ArgumentParser):
    """Keeps the line breaks of descriptions, and says where help is."""

    def __init__(self, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        self.print_usage(sys.stderr)
        print(f"error: {message}. See: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="tfcompress", description=_DESCRIPTION)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in COMMANDS:
        module = importlib.import_module(f"tfcompress_cli.commands.{name}")
        command = commands.add_parser(name, help=module.SUMMARY, description=module.DESCRIPTION)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_argument(
            "--verbose", action="store_true", help="show the logs of libraries, and tracebacks"
        )
        command.add_argument("--quiet", action="store_true", help="show no progress")
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code of the process.

    Args:
        arguments: What follows `tfcompress`; by default those of the process.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.version:
        print(_version())
        return 0
    if options.command is None:
        parser.error(f"expected a command: {', '.join(COMMANDS)}")
    try:
        with contextlib.nullcontext() if options.verbose else quiet():
            output = options.run(options)
        print(output.as_json() if options.json else output.text.rstrip("\n"))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`head`, say) has seen enough.
        sys.stdout = None
        return 0
    except Exception as error:
        return _report_failure(error, options.verbose)
    return output.exit_code


def _version() -> str:
    """Of tfcompress, without importing it."""
    spec = importlib.util.find_spec("tfcompress")
    if spec is None or spec.origin is None:
        return "unknown"
    return runpy.run_path(str(pathlib.Path(spec.origin).with_name("version.py")))["__version__"]


def _report_failure(error: Exception, verbose: bool) -> int:
    """Prints one line and returns the exit code: 2 for what the caller can mend, else 1."""
    if verbose:
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError) or type(error).__name__ == "ConversionError":
        print(f"error: {text}", file=sys.stderr)
        return 2
    print(f"unexpected {type(error).__name__}: {text} (--verbose shows where)", file=sys.stderr)
    return 1
