"""Removes what a dead process left: run as a script beside a worker process.

    python guard.py WORKER_PID FOLDER

It waits until its standard input closes, which happens when the process that started it ends, in
whatever way. Then it kills the worker and removes the folder. A process that ends in order kills
the guard instead. It imports nothing but the standard library, for it starts with every worker.
"""

import contextlib
import os
import shutil
import signal
import sys


def main() -> None:
    pid, folder = int(sys.argv[1]), sys.argv[2]
    worker = None
    with contextlib.suppress(AttributeError, OSError):
        # Not the number alone, which another process may have got meanwhile.
        worker = os.pidfd_open(pid)
    sys.stdin.buffer.read()
    with contextlib.suppress(OSError):
        if worker is not None:
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        elif not hasattr(os, "pidfd_open"):
            os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
