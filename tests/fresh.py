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
from typing import NamedTuple

#: Of all processes of the tests: there is one server, whose modules the first one decides.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["keras"])


class Finished(NamedTuple):
    """A process that has ended."""

    returncode: int
    stdout: str
    stderr: str


def run(code, *arguments):
    """Runs `code` with `arguments` in `sys.argv[1:]`, and returns what it prints.

    Raises:
        AssertionError: With the traceback, if it raised; or with its exit code, if it died.
    """
    finished = _run(_execute, textwrap.dedent(code), arguments)
    if finished.returncode:
        raise AssertionError(finished.stderr)
    return finished.stdout


def _run(target, code, arguments):
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=target, args=(code, [*map(str, arguments)], sender))
    process.start()
    sender.close()
    with receiver:
        try:
            finished = receiver.recv()
        except EOFError:
            process.join()
            finished = Finished(process.exitcode, "", f"It died: exit code {process.exitcode}.")
    process.join()
    process.close()
    return finished


def _execute(code, arguments, sender):
    _report(
        lambda: exec(compile(code, "<fresh process>", "exec"), {"__name__": "__main__"}),
        ["-c", *arguments],
        sender,
    )


def _report(execute, argv, sender):
    sys.argv = argv
    stdout, stderr = io.StringIO(), io.StringIO()
    returncode = 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            execute()
        except SystemExit as error:
            returncode = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            returncode = 1
    sender.send(Finished(returncode, stdout.getvalue(), stderr.getvalue()))
    sender.close()
