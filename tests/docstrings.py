"""Reading the sections of Google-style docstrings."""

from __future__ import annotations

import inspect
import re

_HEADING = re.compile(r"^(?P<name>[A-Z][a-z]+):$")
_ENTRY = re.compile(r"^(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:(?: |$)")


def entries(docstring: str | None, section: str) -> list[str]:
    """Names of the entries of a section, such as `Args`, in their order; empty without it."""
    found: list[str] = []
    inside, indent = False, ""
    for line in inspect.cleandoc(docstring or "").splitlines():
        heading = _HEADING.match(line)
        if heading or (line and not line.startswith(" ")):
            inside, indent = bool(heading) and heading["name"] == section, ""
            continue
        if not inside or not line.strip():
            continue
        indent = indent or re.match(" *", line)[0]
        if line.startswith(indent + " "):
            continue
        entry = _ENTRY.match(line.strip())
        if entry:
            names = (name.strip("* ") for name in entry["names"].split(","))
            found.extend(names)
        else:
            found.append(line.strip())
    return found
