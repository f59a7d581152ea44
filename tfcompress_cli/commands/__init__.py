"""The commands, a module each.

A module has `SUMMARY` (one line), `DESCRIPTION` (for its `--help`), `add_arguments(parser)` and
`run(options)`, which returns a `tfcompress_cli.output.Output`. Its name is the name of the command.
Modules import TensorFlow and `tfcompress` inside `run` alone.
"""

#: In the order of `tfcompress --help`.
COMMANDS = (
    "inspect",
    "compare",
    "compress",
    "benchmark",
    "lint",
    "bundle",
    "report",
    "search",
    "run",
)
