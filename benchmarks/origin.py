"""Which code measured a row."""

from __future__ import annotations

import pathlib
import subprocess

#: What measuring writes itself.
_RESULTS = ("recipes/results/", "docs/")


def commit() -> str:
    """The commit that is checked out, with a `+` where a file of code differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        root = pathlib.Path(__file__).parent
        return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout

    changed = [line[3:] for line in git("status", "--porcelain", "-uno").splitlines()]
    differs = any(not name.startswith(_RESULTS) for name in changed)
    return git("rev-parse", "--short=7", "HEAD").strip() + ("+" if differs else "")
