"""What the command-line tools share: how one is started, and how it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import app, flags


def run_command(
    main: Callable[[Sequence[str]], None],
    define_flags: Callable[[], None],
    usage: str,
) -> None:
    """Parses the command line and calls `main` with the arguments that are no flags.

    Flags are defined here and not at import, so that several tools can be imported in one
    process. A user's mistake (`ValueError`) ends the program with its message, not a traceback.

    Args:
        main: The tool; takes the positional arguments.
        define_flags: Defines its flags on `absl.flags.FLAGS`.
        usage: Text for `--help`.
    """
    before = set(flags.FLAGS)
    define_flags()
    for name in set(flags.FLAGS) - before:
        # `--help` lists the flags of the main module, which is a script of two lines.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    sys.modules["__main__"].__doc__ = usage

    def guarded(argv: Sequence[str]) -> int:
        try:
            main(argv[1:])
        except ValueError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 2
        return 0

    app.run(guarded)
