"""Conversion in a worker process: functions in, `.tflite` bytes out."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import shutil
import signal
from collections.abc import Iterator, Mapping

import tensorflow as tf

from tfcompress.export.conversion import worker
from tfcompress.export.lowering.lower import Lowered
from tfcompress.files.process import WorkerProcess

# A conversion leaks memory, so a worker that is kept is replaced after this many.
_JOBS_PER_WORKER = 40
# A SavedModel of so many bytes is worth the time of a garbage collection.
_LARGE = 2**24

_FULL = "Nothing was written. Free some space there, or set TMPDIR to another folder"


class ConversionError(RuntimeError):
    """The converter refused a model or crashed on it, or LiteRT crashed on the file."""


class Converter:
    """A worker process, started when first needed; a context manager that ends it."""

    def __init__(self) -> None:
        self._worker: WorkerProcess | None = None
        self._jobs = 0

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker; the next conversion starts another."""
        if self._worker is not None and not self._worker.closed:
            self._worker.kill()
        self._worker, self._jobs = None, 0

    def start(self) -> WorkerProcess:
        """Starts the worker, which imports TensorFlow meanwhile; returns the one there is.

        A worker that has converted `_JOBS_PER_WORKER` models is replaced here: before a conversion,
        and not between it and what is still to be done with its file.

        Raises:
            ValueError: There is no folder for temporary files.
        """
        if self._jobs >= _JOBS_PER_WORKER:
            self.close()
        return self._running()

    def _running(self) -> WorkerProcess:
        """The worker, whatever it has converted."""
        # One that an exception has interrupted is closed.
        if self._worker is None or self._worker.closed:
            self._worker, self._jobs = WorkerProcess(worker.__file__), 0
        return self._worker

    def convert(
        self,
        signatures: Mapping[str, Lowered],
        *,
        sparse: bool = False,
        weights: str | None = None,
    ) -> bytes:
        """Converts one model of one or several signatures, without any optimization.

        Args:
            signatures: Signature key → lowered model.
            sparse: Leave the zeros of a float file's weights out.
            weights: `"float16"` or `"dynamic"`: how the converter stores a float file's weights.

        Raises:
            ConversionError: With the converter's own message, or the signal that ended it; or the
                temporary folder is full.
        """
        self.start()
        with self._folder() as folder:
            output = folder / "model.tflite"
            job = {
                "saved_model": str(folder / "saved_model"),
                "signatures": list(signatures),
                "output": str(output),
                "sparse": sparse,
                "weights": weights,
            }
            keys = ", ".join(signatures)
            try:
                _save(signatures, folder / "saved_model")
            except (OSError, tf.errors.OpError) as error:
                raise ConversionError(
                    f"Expected to write {keys!r} to the temporary folder {str(folder.parent)!r} "
                    f"for the converter. Received: {error}. {_FULL}"
                ) from error
            if sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) > _LARGE:
                # Graphs are cycles, with a copy of every constant; the next steps need the memory.
                gc.collect()
            error_text = self._run(job, f"The converter crashed on {keys!r}")
            self._jobs += 1
            if error_text is not None:
                remedy = f". {_FULL}" if "No space left" in error_text else ""
                raise ConversionError(f"The converter refused {keys!r}: {error_text}{remedy}")
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
        with self._folder() as folder:
            path = folder / "model.tflite"
            try:
                path.write_bytes(data)
            except OSError as error:
                raise ConversionError(
                    f"Expected to write {name!r} to the temporary folder {str(folder.parent)!r} "
                    f"to load it. Received: {error}. {_FULL}"
                ) from error
            self._run(
                {"load": str(path)},
                f"The file of {name!r} was converted, but LiteRT crashed when it loaded it, as it "
                "would on a phone. Export the layers one by one to find the "
                "one concerned, and leave it in float",
            )

    @contextlib.contextmanager
    def _folder(self) -> Iterator[pathlib.Path]:
        """A folder for one job, inside that of the worker."""
        folder = self._running().folder / "job"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, job: dict, crash: str) -> str | None:
        """Hands a job to the worker; returns the text of an exception that it raised."""
        running = self._running()
        answer = running.run(job)
        if answer is None:
            ended = running.close()
            self._worker, self._jobs = None, 0
            if running.process.returncode == -signal.SIGKILL:
                ended += ". Signal 9 is mostly that of a machine without memory left"
            raise ConversionError(f"{crash} {ended}. Nothing was written")
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
    module.kernels = [lowered.variables for lowered in signatures.values()]
    tf.saved_model.save(module, str(path), signatures=functions)
