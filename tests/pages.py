"""The pages of the documentation: their code blocks and the names that they use."""

from __future__ import annotations

import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]

PAGES = [
    *(page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if page.exists()),
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(path: pathlib.Path, language: str = "python") -> list[str]:
    """The fenced blocks of a language, with as many line breaks before as in the page.

    So the line numbers of a traceback are those of the page.
    """
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match[1] for match in pattern.finditer(text)
    ]


def run_blocks(path: pathlib.Path) -> dict[str, Any]:
    """Runs the Python blocks of a page one after the other; returns their namespace."""
    namespace: dict[str, Any] = {"__name__": path.stem}
    for block in blocks(path):
        # This file's own `from __future__` would hold in the page too.
        code = compile(block, str(path), "exec", dont_inherit=True)
        exec(code, namespace)
    return namespace
