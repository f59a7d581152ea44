"""A `.tflite` is loaded in a process of its own before it is loaded in the user's."""

from __future__ import annotations

import atexit
import hashlib
import os
import signal
import threading

from tfcompress.files import loader
from tfcompress.files.flatbuffer import check_tflite
from tfcompress.files.process import WorkerProcess

#: Bytes that loading and one run may take: so many, and so many for each byte of the file.
FREE_MEMORY, MEMORY_PER_BYTE = 2**30, 64
#: Seconds that they may take, likewise for each megabyte.
FREE_SECONDS, SECONDS_PER_MEGABYTE = 60.0, 5.0


class UnusableFile(ValueError, RuntimeError):
    """LiteRT refuses a `.tflite`, or crashes on it."""


class _Loaders:
    """The process that loads files, started when first needed, and the files it has loaded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.worker: WorkerProcess | None = None
        self.sound: set[str] = set()
        self.owner = os.getpid()


_loaders = _Loaders()


def check_loads(data: bytes, source: str = "bytes") -> None:
    """Checks that LiteRT can load and run a `.tflite` without harm to this process.

    A file is checked once in a session; what an export has written is known to be sound.

    Args:
        data: The file.
        source: What to call it in the message.

    Raises:
        ValueError: It is no TFLite flatbuffer, is truncated or damaged, LiteRT refuses it, crashes
            on it, or takes more memory or time than a file of its size may.
    """
    check_tflite(data, source)
    digest = hashlib.sha256(data).hexdigest()
    with _loaders.lock:
        if digest in _loaders.sound:
            return
        error = _load(data, source)
        if error is not None:
            raise UnusableFile(error)
        _loaders.sound.add(digest)


def mark_sound(data: bytes) -> None:
    """Notes that a file has been loaded in another process already."""
    _loaders.sound.add(hashlib.sha256(data).hexdigest())


def close() -> None:
    """Ends the process that loads files; the next file starts another."""
    worker, _loaders.worker = _loaders.worker, None
    # A forked process has not started it.
    if worker is not None and not worker.closed and _loaders.owner == os.getpid():
        worker.kill()


atexit.register(close)


def _load(data: bytes, source: str) -> str | None:
    """Loads a file in the worker; returns what is wrong with it."""
    if _loaders.owner != os.getpid():
        _loaders.worker, _loaders.owner = None, os.getpid()
    worker = _loaders.worker
    if worker is None or worker.closed:
        worker = _loaders.worker = WorkerProcess(loader.__file__)
    path = worker.folder / "model.tflite"
    path.write_bytes(data)
    memory = FREE_MEMORY + MEMORY_PER_BYTE * len(data)
    seconds = FREE_SECONDS + SECONDS_PER_MEGABYTE * len(data) / 1e6
    job = {"path": str(path), "memory": memory, "seconds": seconds}
    answer = worker.run(job)
    path.unlink(missing_ok=True)
    if answer is None:
        ended = worker.close()
        how = f"the process that loads it ended {ended}"
    elif "error" in answer:
        how = f"LiteRT refuses to load the file: {answer['error']}"
    elif answer.get("signal") == signal.SIGALRM:
        how = f"LiteRT takes longer than {seconds:.0f} s to load and run it"
    elif "signal" in answer:
        how = (
            f"LiteRT crashes on it (signal {answer['signal']}). It was loaded in another process, "
            "so nothing is lost here. The file is damaged: export it or fetch it again"
        )
    else:
        return None
    return f"Expected a .tflite that LiteRT can load and run. Received: {source}; {how}"
