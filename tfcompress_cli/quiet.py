"""Keeps what libraries log away from the terminal.

TensorFlow, XNNPACK and absl write to the error output of the process, below Python. While a
command runs, that output and Python's standard output lead to a temporary file; messages of the
command itself, warnings of tfcompress and progress still reach the terminal.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

#: Environment of TensorFlow and of its children.
_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ABSL_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Runs the block with the logs of libraries in a file that is thrown away."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    stdout, stderr, show = sys.stdout, sys.stderr, warnings.showwarning
    with tempfile.TemporaryFile("w+") as log, contextlib.ExitStack() as stack:
        terminal = _redirect_descriptor(2, log.fileno(), stack)
        sys.stdout = log
        if terminal is not None:
            sys.stderr = stack.enter_context(os.fdopen(os.dup(terminal), "w", buffering=1))
        warnings.showwarning = _show_warning
        try:
            yield
        finally:
            sys.stdout, sys.stderr, warnings.showwarning = stdout, stderr, show


def _redirect_descriptor(number: int, target: int, stack: contextlib.ExitStack) -> int | None:
    """Points a descriptor elsewhere until the stack closes; returns a copy of the old one.

    Where Python's error output is not the descriptor (a test captures it), nothing is redirected.
    """
    try:
        is_own = sys.stderr.fileno() == number
    except (AttributeError, OSError, ValueError):
        is_own = False
    if not is_own:
        return None
    saved = os.dup(number)
    stack.callback(os.close, saved)
    stack.callback(os.dup2, saved, number)
    os.dup2(target, number)
    return saved


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """One line for a warning that is meant for the user; none for those of libraries' internals."""
    if category is UserWarning:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
