"""Progress of what may take minutes, on the standard error output."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:
    import rich.progress

#: `"auto"`: a bar in a terminal, nothing elsewhere. 0: nothing. 1: a bar in a terminal, plain lines
#: elsewhere, such as in a notebook or a log.
Verbosity: TypeAlias = int | Literal["auto"]

# Steps without a name are printed this often where there is no bar.
_PERIOD = 5.0


class Progress:
    """Shows how far a task is.

    A task inside another one is shown below it, and is silent where that one is.

    Args:
        task: What is printed in front.
        steps: How many steps there are.
        verbose: See `Verbosity`.

    Raises:
        ValueError: Another `verbose`.
    """

    _running: ClassVar[list[Progress]] = []

    def __init__(self, task: str, steps: int, verbose: Verbosity = "auto"):
        if verbose not in ("auto", 0, 1, 2):
            raise ValueError(f"Expected verbose to be 'auto', 0 or 1. Received: {verbose=}")
        self.task, self.steps, self.done = task, steps, 0
        self._verbose = verbose
        self._what = ""
        self._next = 0.0
        self._lines = False
        self._bar: rich.progress.Progress | None = None
        self._number: rich.progress.TaskID | None = None

    def __enter__(self) -> Progress:
        outer = self._running[-1] if self._running else None
        self._running.append(self)
        if self._verbose == 0:
            return self
        if outer is not None:
            self._bar, self._lines = outer._bar, outer._lines
        elif _is_terminal():
            self._bar = _bar()
            self._bar.start()
        else:
            self._lines = self._verbose != "auto"
        if self._bar is not None:
            self._number = self._bar.add_task(self.task, total=self.steps, what="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running.remove(self)
        if self._bar is None or self._number is None:
            return
        if any(outer._bar is self._bar for outer in self._running):
            self._bar.remove_task(self._number)
        else:
            self._bar.stop()

    def stage(self, what: str) -> None:
        """Names what is done next; the stage before it, if any, is done then."""
        if self._what:
            self.done += 1
        self._what = what
        self._show(is_new=True)

    def advance(self, steps: int = 1) -> None:
        """Counts steps that are done."""
        self.done += steps
        self._show()

    def step(self, result: str) -> None:
        """Counts one step, and shows what it gave."""
        self.done += 1
        self._show(result, is_new=True)

    def _show(self, result: str = "", *, is_new: bool = False) -> None:
        text = result or self._what
        if self._bar is not None and self._number is not None:
            self._bar.update(self._number, completed=self.done, what=text)
        elif self._lines and (is_new or time.monotonic() >= self._next):
            self._next = time.monotonic() + _PERIOD
            parts = (f"{self.task}: {self.done / max(self.steps, 1):.0%}", text)
            print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)


def _is_terminal() -> bool:
    """Whether lines can be overwritten. A notebook, a file and a pipe are no terminals."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    except (AttributeError, ValueError):
        return False


def _bar() -> rich.progress.Progress:
    """A display that is erased when it ends."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", markup=False),
        console=Console(file=sys.stderr),
        transient=True,
        # A refresh takes time of the task.
        refresh_per_second=3,
        # What goes to a file must not come out in the terminal.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
