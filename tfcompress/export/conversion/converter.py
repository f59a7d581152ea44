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


class Converter:
    """A worker process, started when first needed; a context manager that ends it."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._log = None
        self._jobs = 0

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker; the next conversion starts another."""
        if self._process is not None:
            # The pipe of a worker that has crashed cannot be flushed.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._log.close()
        self._process, self._jobs = None, 0

    def convert(self, signatures: Mapping[str, Lowered], *, sparse: bool = False) -> bytes:
        """Converts one model of one or several signatures, without any optimization.

        Args:
            signatures: Signature key → lowered model.
            sparse: Leave the zeros of a float file's weights out.

        Raises:
            ConversionError: With the converter's own message, or the signal that ended it.
        """
        with tempfile.TemporaryDirectory(prefix="tfcompress-") as folder:
            folder = pathlib.Path(folder)
            output = folder / "model.tflite"
            job = {
                "saved_model": str(folder / "saved_model"),
                "signatures": list(signatures),
                "output": str(output),
                "sparse": sparse,
            }
            _save(signatures, folder / "saved_model")
            name = ", ".join(signatures)
            if self._jobs >= _JOBS_PER_WORKER:
                self.close()
            self._jobs += 1
            error = self._run(job, f"The converter crashed on {name!r}")
            if error is not None:
                raise ConversionError(f"The converter refused {name!r}: {error}")
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
        if self._process is None:
            self._start()
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ConversionError(self._crash(crash))
        return json.loads(line).get("error")

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def _crash(self, message: str) -> str:
        """Ends the crashed worker and completes the message with how it ended and its log."""
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        self.close()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{message} ({how}). End of the log: {' '.join(lines[-3:]) or 'empty'}"


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
