"""Progress of what may take minutes, on the standard error output."""

from __future__ import annotations

import sys
import time
from types import TracebackType

# A task that is done sooner prints nothing.
_SILENT_SECONDS, _PERIOD = 10.0, 5.0


class Progress:
    """Prints how far a task is, once it has run for ten seconds.

    Args:
        task: What is printed in front.
        steps: How many steps there are.
    """

    def __init__(self, task: str, steps: int):
        self.task, self.steps, self.done = task, steps, 0
        self._next = time.monotonic() + _SILENT_SECONDS
        self._has_printed = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._has_printed:
            print(file=sys.stderr)

    def advance(self, steps: int = 1) -> None:
        """Counts steps that are done."""
        self.done += steps
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PERIOD
        self._has_printed = True
        share = self.done / self.steps
        print(f"\r{self.task}: {share:.0%}", end="", file=sys.stderr, flush=True)
