"""Conversion in a worker process: functions in, `.tflite` bytes out."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

import tensorflow as tf

from tfcompress.export.conversion import worker
from tfcompress.export.lowering.lower import Lowered

# A conversion leaks memory, so a worker that is kept is replaced after this many.
_JOBS_PER_WORKER = 40


class ConversionError(RuntimeError):
    """The converter refused a model or crashed on it, or LiteRT crashed on the file."""


class _Worker:
    """A worker process, its pipes and its log."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the worker
        self.process = subprocess.Popen(
            [sys.executable, worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def run(self, job: dict) -> dict | None:
        """Hands a job over; returns the answer, `None` where the worker has ended without one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(job), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else None

    def kill(self) -> None:
        """Ends a worker that has no job: TensorFlow takes a second to end by itself."""
        self.process.kill()
        self.close()

    def close(self) -> str:
        """Waits until the worker ends; returns how it ended and the last lines of its log."""
        for pipe in (self.process.stdin, self.process.stdout):
            # The pipe of a worker that has crashed cannot be flushed.
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        code = self.process.wait()
        lines: list[str] = []
        if not self._log.closed:
            self._log.seek(0)
            lines = self._log.read().strip().splitlines()
            self._log.close()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"({how}). End of the log: {' '.join(lines[-3:]) or 'empty'}"


class Converter:
    """A worker process, started when first needed; a context manager that ends it."""

    def __init__(self) -> None:
        self._worker: _Worker | None = None
        self._jobs = 0

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker; the next conversion starts another."""
        if self._worker is not None:
            self._worker.kill()
        self._worker, self._jobs = None, 0

    def start(self) -> None:
        """Starts the worker, which imports TensorFlow meanwhile; nothing where there is one."""
        if self._worker is None:
            self._worker = _Worker()

    def convert(self, signatures: Mapping[str, Lowered], *, sparse: bool = False) -> bytes:
        """Converts one model of one or several signatures, without any optimization.

        Args:
            signatures: Signature key → lowered model.
            sparse: Leave the zeros of a float file's weights out.

        Raises:
            ConversionError: With the converter's own message, or the signal that ended it.
        """
        with tempfile.TemporaryDirectory(prefix="tfcompress-") as name:
            folder = pathlib.Path(name)
            output = folder / "model.tflite"
            job = {
                "saved_model": str(folder / "saved_model"),
                "signatures": list(signatures),
                "output": str(output),
                "sparse": sparse,
            }
            _save(signatures, folder / "saved_model")
            keys = ", ".join(signatures)
            if self._jobs >= _JOBS_PER_WORKER:
                self.close()
            self._jobs += 1
            error = self._run(job, f"The converter crashed on {keys!r}")
            if error is not None:
                raise ConversionError(f"The converter refused {keys!r}: {error}")
            return output.read_bytes()

    def check_loads(self, data: bytes, name: str) -> None:
        """Loads a file in LiteRT, in the worker: LiteRT aborts the process for some files.

        What LiteRT refuses with an exception it refuses again where the file is loaded next, so
        only a crash is an error here.

        Args:
            data: The `.tflite`.
            name: What to call it in the message.

        Raises:
            ConversionError: LiteRT crashed, with the signal and the end of its log.
        """
        with tempfile.TemporaryDirectory(prefix="tfcompress-") as folder:
            path = pathlib.Path(folder) / "model.tflite"
            path.write_bytes(data)
            self._run(
                {"load": str(path)},
                f"The file of {name!r} was converted, but LiteRT crashed when it loaded it, as it "
                "would on a phone. Nothing was written. Export the layers one by one to find the "
                "one concerned, and leave it in float",
            )

    def _run(self, job: dict, crash: str) -> str | None:
        """Hands a job to the worker; returns the text of an exception that it raised."""
        self.start()
        assert self._worker is not None
        answer = self._worker.run(job)
        if answer is None:
            ended = self._worker.close()
            self._worker, self._jobs = None, 0
            raise ConversionError(f"{crash} {ended}")
        return answer.get("error")


_shared: list[Converter] = []


@contextlib.contextmanager
def shared_converter() -> Iterator[Converter]:
    """Lets every export inside the `with` use one worker, which saves its start for each.

    Inside another such `with`, it is the outer one's worker.
    """
    if _shared:
        yield _shared[-1]
        return
    with Converter() as converter:
        _shared.append(converter)
        try:
            yield converter
        finally:
            _shared.pop()


@contextlib.contextmanager
def current_converter() -> Iterator[Converter]:
    """The shared worker where there is one, else one of its own."""
    if _shared:
        yield _shared[-1]
    else:
        with Converter() as converter:
            yield converter


def _save(signatures: Mapping[str, Lowered], path: pathlib.Path) -> None:
    module = tf.Module()
    functions = {}
    for key, lowered in signatures.items():
        function = tf.function(lowered.function, autograph=False)
        functions[key] = function.get_concrete_function(*lowered.specs)
    module.functions = list(functions.values())
    tf.saved_model.save(module, str(path), signatures=functions)
