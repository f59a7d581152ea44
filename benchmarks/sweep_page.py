"""The page of the sweep: counts by kind, what is not in int8 and why, what has no case."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

import keras
from keras import layers

from recipes.results import markdown

_HEAD = """# The sweep

Layers, operations, functions, custom layers and small nets: each is planned by itself, calibrated,
exported, and run by the bare LiteRT runtime beside the Keras model. *int8* is int8 from
the input to the output; *float and named* has a float part, which `tfc.plan` names; *refused* is an
error of `tfc.plan`, before training. *Equal* is the share of output codes that are those of the
Keras model (for a float output: within half of 1/255 of its span). The cases are those of the
parity tests.

    python -m benchmarks.sweep
    python -m benchmarks.sweep --page > docs/sweep.md

"""


def page(rows: Sequence[dict[str, str]]) -> str:
    """The page of the results, as Markdown."""
    by_kind: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    lines = [_summary(kind, found) for kind, found in by_kind.items()]
    lines.append(_summary("all", rows))
    heads = (
        "kind",
        "cases",
        "int8",
        "float and named",
        "refused",
        "failed",
        "least equal",
        "largest",
    )
    text = _HEAD + markdown(heads, lines) + "\n\n"
    others = [row for row in rows if row["outcome"] != "int8"]
    text += "## Not in int8\n\n"
    cells = [(r["name"], r["outcome"], r["equal"], r["reason"].replace("|", "/")) for r in others]
    text += markdown(("case", "outcome", "equal", "reason"), cells) + "\n\n"
    text += "## More than one step apart\n\n"
    far = [r for r in rows if r["outcome"] == "int8" and int(r["largest"]) > 1]
    cells = [(r["name"], r["equal"], r["largest"]) for r in far]
    text += (markdown(("case", "equal", "largest"), cells) if cells else "None.") + "\n\n"
    return text + "## Without a case\n\n" + _without_case(rows)


def _summary(kind: str, rows: Sequence[dict[str, str]]) -> tuple[str, ...]:
    counts = collections.Counter(row["outcome"] for row in rows)
    compared = [row for row in rows if row["equal"]]
    int8 = f"{counts['int8']} ({counts['int8'] / len(rows):.0%})"
    least = f"{min((float(r['equal']) for r in compared), default=1):.4f}"
    largest = str(max((int(r["largest"]) for r in compared), default=0))
    rest = (str(counts[name]) for name in ("float", "refused", "failed"))
    return (kind, str(len(rows)), int8, *rest, least, largest)


def _without_case(rows: Sequence[dict[str, str]]) -> str:
    found = {word.lower().replace("_", "") for row in rows for word in row["operations"].split()}
    text = ""
    for title, names in (("Layers", _layers()), ("Functions of `keras.ops`", _functions())):
        missing = [n for n in names if n.lower().replace("_", "") not in found]
        text += f"{title}: {', '.join(f'`{n}`' for n in missing)}.\n\n"
    return text.rstrip("\n") + "\n"


def _layers() -> list[str]:
    """Layer classes of Keras, each by one name."""
    public = {n: getattr(layers, n) for n in dir(layers)}
    return [n for n, c in public.items() if isinstance(c, type) and c.__name__ == n]


def _functions() -> list[str]:
    """Functions of `keras.ops` that are operations of a model."""
    names = [n for n in dir(keras.ops) if re.fullmatch("[a-z][a-z0-9_]*", n)]
    functions = {n: getattr(keras.ops, n) for n in names}
    return [n for n, f in functions.items() if callable(f) and getattr(f, "__name__", "") == n]
