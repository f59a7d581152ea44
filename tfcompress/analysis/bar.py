"""Progress of a search: a bar by rich, or nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(task: str, steps: int, verbose: int) -> Iterator[Callable[[str], None]]:
    """Shows how far a task is; yields `advance(what)`, which counts one step.

    Args:
        task: What is printed in front.
        steps: How many steps there are.
        verbose: 0 prints nothing.
    """
    if not verbose:
        yield lambda what: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        number = progress.add_task(task, total=steps, what="")
        yield lambda what: progress.update(number, advance=1, what=what)
