"""Code in a fresh process: one that has imported Keras and nothing else.

Each is forked from a server that has done the import, which takes longer than most tests do.
TensorFlow has not run in it: options that must be set before its first operation can be set.
"""

import contextlib
import io
import multiprocessing
import sys
import textwrap
import traceback

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["keras"])


def run(code, *arguments):
    """Runs `code` with `arguments` in `sys.argv[1:]`, and returns what it prints.

    Raises:
        AssertionError: With the traceback, if it raised; or with its exit code, if it died.
    """
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(
        target=_execute, args=(textwrap.dedent(code), [*map(str, arguments)], sender)
    )
    process.start()
    sender.close()
    with receiver:
        try:
            printed, error = receiver.recv()
        except EOFError:
            process.join()
            raise AssertionError(f"The process died with exit code {process.exitcode}.") from None
    process.join()
    process.close()
    if error:
        raise AssertionError(error)
    return printed


def _execute(code, arguments, sender):
    sys.argv = ["-c", *arguments]
    printed, error = io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(code, "<fresh process>", "exec"), {"__name__": "__main__"})
        except BaseException:
            error = traceback.format_exc()
    sender.send((printed.getvalue(), error))
    sender.close()
