"""Which code measured a row."""

from __future__ import annotations

import functools
import pathlib
import subprocess

#: What measuring writes itself.
_RESULTS = ("recipes/results/", "docs/")


@functools.cache
def commit() -> str:
    """The commit that is checked out, with a `+` where a file of code differs from it.

    `"unknown"` where this is no clone. Read once per process: what runs is what was imported.
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        root = pathlib.Path(__file__).parent
        return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout

    try:
        changed = [line[3:] for line in git("status", "--porcelain", "-uno").splitlines()]
        head = git("rev-parse", "--short=7", "HEAD").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    differs = any(not name.startswith(_RESULTS) for name in changed)
    return head + ("+" if differs else "")
