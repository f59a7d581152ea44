"""Watches calls of layers: what each layer of a model receives and returns while the model runs.

Works on any model (functional, nested, subclassed), because it temporarily replaces the layers' own
`call` and does not need the graph. It happens in Python: while a compiled step is traced, not when
it runs. A shared layer is recorded once per call.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

OnCall = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]

# Replicas of a distributed step are traced in threads of their own that take turns: each thread
# has its own watchers, and an operation gets its `call` back when no watcher is left.
_LOCAL = threading.local()
_LOCK = threading.Lock()
_WATCHED: dict[int, int] = {}
#: Operation, by id, → the `call` that its instance had of its own, `None` for that of its class.
_REPLACED: dict[int, Any] = {}


@contextlib.contextmanager
def watch_calls(operations: Iterable[Any], on_call: OnCall) -> Iterator[None]:
    """Calls `on_call(operation, args, kwargs, outputs)` after every call made in this thread.

    Watching can be nested: each watcher receives all calls inside its own block.

    Args:
        operations: Layers, or operations of a functional graph.
        on_call: What to do with a call.
    """
    operations = {id(operation): operation for operation in operations}
    watcher = (operations, on_call)
    stack = _LOCAL.__dict__.setdefault("stack", [])
    stack.append(watcher)
    for operation in operations.values():
        _start(operation)
    try:
        yield
    finally:
        for operation in operations.values():
            _stop(operation)
        stack.remove(watcher)


@contextlib.contextmanager
def record_calls(operations: Iterable[Any]) -> Iterator[dict[int, list[Any]]]:
    """Records the outputs of `operations` called in this thread.

    Yields:
        A dict `id(operation) → [outputs of the first call, of the second, …]`, filled as the
        operations run.
    """
    operations = list(operations)
    calls: dict[int, list[Any]] = {id(operation): [] for operation in operations}
    with watch_calls(operations, lambda op, args, kwargs, out: calls[id(op)].append(out)):
        yield calls


def _start(operation: Any) -> None:
    with _LOCK:
        _WATCHED[id(operation)] = _WATCHED.get(id(operation), 0) + 1
        if _WATCHED[id(operation)] > 1:
            return
        call = operation.call

        @functools.wraps(call)
        def watched_call(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            for operations, on_call in list(getattr(_LOCAL, "stack", ())):
                if id(operation) in operations:
                    on_call(operation, args, kwargs, outputs)
            return outputs

        _REPLACED[id(operation)] = operation.__dict__.get("call")
        # Straight into the instance's dict: nothing here is for Keras to track.
        operation.__dict__["call"] = watched_call


def _stop(operation: Any) -> None:
    with _LOCK:
        _WATCHED[id(operation)] -= 1
        if _WATCHED[id(operation)]:
            return
        del _WATCHED[id(operation)]
        del operation.__dict__["call"]
        replaced = _REPLACED.pop(id(operation))
        if replaced is not None:
            operation.__dict__["call"] = replaced
