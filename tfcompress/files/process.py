"""A worker process: one job per line in, one answer per line out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from typing import Any

from tfcompress.files import guard
from tfcompress.files.writing import make_temporary_folder


class WorkerProcess:
    """A script in a process of its own, with a temporary folder, its pipes and its log.

    A job is a JSON object with a number; the answer has the same number, so that one that was left
    unread is never taken for the next. The process has a session of its own: Ctrl-C in a terminal
    reaches this process alone, which then kills the worker. Where this process ends in any other
    way, SIGKILL included, a guard kills the worker and removes the folder.

    Args:
        script: Path of the script.

    Attributes:
        folder: Its folder for temporary files, which is removed with it.
        process: The process.
        closed: Whether it has been ended.
        timed_out: Whether it has been killed because a job took too long.

    Raises:
        ValueError: There is no folder for temporary files.
    """

    def __init__(self, script: str):
        self.closed = self.timed_out = False
        self._number, self._unread = 0, b""
        self.folder = make_temporary_folder()
        try:
            self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
            self.process = subprocess.Popen(
                [sys.executable, script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                start_new_session=True,
            )
            # Isolated and without site-packages: it starts in a few milliseconds.
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(self.process.pid), self.folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            if hasattr(self, "process"):
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def run(self, job: dict[str, Any], timeout: float | None = None) -> dict[str, Any] | None:
        """Hands a job over and waits for its answer.

        An exception while it waits, such as `KeyboardInterrupt`, kills the worker.

        Args:
            job: The job, as JSON holds it.
            timeout: Seconds after which the worker is killed; `None`: never.

        Returns:
            The answer, `None` where the worker has ended without one.
        """
        self._number += 1
        timer = None
        if timeout is not None:
            timer = threading.Timer(timeout, self._time_out)
            timer.daemon = True
            timer.start()
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps({**job, "number": self._number}).encode() + b"\n")
            while line := self._read_line():
                answer = json.loads(line)
                if answer.get("number") == self._number:
                    return answer
            return None
        except BrokenPipeError:
            return None
        except BaseException:
            self.kill()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _time_out(self) -> None:
        self.timed_out = True
        self.process.kill()

    def _read_line(self) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self._unread:
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                return b""
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def kill(self) -> None:
        """Ends a worker whose answer is not wanted: TensorFlow takes a second to end by itself."""
        self.process.kill()
        self.close()

    def close(self) -> str:
        """Waits until the worker ends; returns how it ended and the last lines of its log."""
        self.closed = True
        for pipe in (self.process.stdin, self.process.stdout):
            # The pipe of a worker that has crashed cannot be flushed.
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        code = self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        lines: list[str] = []
        if not self._log.closed:
            self._log.seek(0)
            lines = self._log.read().strip().splitlines()
            self._log.close()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"({how}). End of the log: {' '.join(lines[-3:]) or 'empty'}"
