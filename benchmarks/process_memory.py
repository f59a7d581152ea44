"""Memory of a process and of the processes that it started, together (Linux)."""

from __future__ import annotations

import os
import pathlib
import threading
from types import TracebackType

PAGE_SIZE = 4096


def memory(pid: int) -> int:
    """Bytes in memory of a process and of all its descendants; what they share counts twice."""
    folder = pathlib.Path(f"/proc/{pid}")
    try:
        pages = int((folder / "statm").read_text(encoding="ascii").split()[1])
        children = {
            int(child)
            for thread in (folder / "task").iterdir()
            for child in (thread / "children").read_text(encoding="ascii").split()
        }
    except (FileNotFoundError, ProcessLookupError):
        return 0  # It ended meanwhile.
    return pages * PAGE_SIZE + sum(memory(child) for child in children)


class PeakMemory:
    """Within it, a thread looks at the memory of this process and of those it started.

    Args:
        seconds: Between two looks.

    Attributes:
        highest: Bytes at the highest look so far; may be set to 0 to begin anew.
    """

    def __init__(self, seconds: float = 0.05):
        self.seconds = seconds
        self.highest = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(self.seconds):
            self._look()

    def _look(self) -> None:
        self.highest = max(self.highest, memory(os.getpid()))
