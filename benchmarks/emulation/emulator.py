"""Runs `guest.py` on emulated CPUs."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

_GUEST = pathlib.Path(__file__).parent / "guest.py"
# Runs whose difference is counted.
_FEW, _MANY = 10, 20


class Emulator:
    """The set-up of `setup.sh`.

    Args:
        folder: Where it is.

    Raises:
        ValueError: There is none.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.command = pathlib.Path(folder).absolute() / "run.sh"
        if not self.command.is_file():
            raise ValueError(
                f"Expected a folder with a run.sh, as benchmarks/emulation/setup.sh makes it. "
                f"Received: {str(folder)!r}."
            )

    def codes(self, cpu: str, folders: Sequence[pathlib.Path]) -> None:
        """Writes `outputs_CPU.npz` of each folder's model and samples."""
        self._run(cpu, "codes", cpu, *map(str, folders))

    def instructions(self, cpu: str, path: pathlib.Path) -> int:
        """Instructions of one inference of a file."""
        totals = []
        with tempfile.TemporaryDirectory() as folder:
            count = pathlib.Path(folder) / "count"
            for runs in (_FEW, _MANY):
                self._run(cpu, "repeat", str(path), str(runs), COUNT=str(count))
                totals.append(int(count.read_text()))
        return round((totals[1] - totals[0]) / (_MANY - _FEW))

    def instructions_of(self, cpu: str, paths: Sequence[pathlib.Path]) -> list[int]:
        """Instructions of one inference of each file, counted in one process.

        Raises:
            ValueError: The set-up counts without marks: one of before, or one of your own.
        """
        with tempfile.TemporaryDirectory() as folder:
            count = pathlib.Path(folder) / "count"
            self._run(cpu, "marked", str(_FEW), *map(str, paths), COUNT=str(count))
            marks = [int(line) for line in count.read_text().split()]
        if len(marks) != 2 * len(paths) + 1:
            raise ValueError(
                f"Expected the count at {2 * len(paths)} marks and at exit. Received: {len(marks)} "
                "numbers. Build count.c of benchmarks/emulation anew, as setup.sh does."
            )
        pairs = zip(marks[:-1:2], marks[1::2], strict=True)
        return [round((after - before) / _FEW) for before, after in pairs]

    def _run(self, cpu: str, *arguments: str, **environment: str) -> None:
        _checked_run([str(self.command), cpu, str(_GUEST), *arguments], environment)


def codes_here(folders: Sequence[pathlib.Path]) -> None:
    """Writes `outputs_x86.npz` of each folder, run on this machine."""
    _checked_run([sys.executable, str(_GUEST), "codes", "x86", *map(str, folders)], {})


def _checked_run(command: list[str], environment: dict[str, str]) -> None:
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
