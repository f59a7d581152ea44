"""A virtual environment for each tool, made where there is none."""

from __future__ import annotations

import pathlib
import subprocess
import sys

#: Environment → what is installed in it. tfmot pins absl-py below 2, which others refuse.
REQUIREMENTS = {
    "tfmot": (
        "tensorflow==2.21.0",
        "tf_keras==2.21.0",
        "tensorflow-model-optimization==0.8.1",
    ),
    "tensorflow": ("tensorflow==2.21.0",),
    "ai-edge-quantizer": ("ai-edge-quantizer==0.10.0",),
}


def python_of(name: str, folder: pathlib.Path) -> str:
    """The Python of an environment; `"tfcompress"` is the one that runs.

    Args:
        name: A key of `REQUIREMENTS`, or `"tfcompress"`.
        folder: Holds the environments.
    """
    if name == "tfcompress":
        return sys.executable
    python = folder.absolute() / name / "bin" / "python"
    # The mark is written last, so an interrupted installation is done again.
    mark = python.parents[1] / "installed.txt"
    wanted = " ".join(REQUIREMENTS[name])
    if not mark.is_file() or mark.read_text(encoding="utf-8") != wanted:
        print(f"Installing {wanted} into {python.parents[1]}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *REQUIREMENTS[name]], check=True)
        mark.write_text(wanted, encoding="utf-8")
    return str(python)
