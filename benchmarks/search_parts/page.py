"""The tables of `docs/search.md`, from the rows of `search.csv`."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping

from benchmarks.search_parts.ranking import correlation
from recipes.results import grouped, markdown, mean_and_deviation

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "search.md"
_BEGIN, _END = "<!-- tables of results: begin -->", "<!-- tables of results: end -->"

NETS = {
    "resnet8": "ResNet-8 on CIFAR-10 (JPEG)",
    "mobilenet": "MobileNetV2-0.35 on CIFAR-10 at 64 pixels",
    "spotter": "DS-CNN on spoken digits",
}
#: Head of a column → (column of the rows, digits).
_COLUMNS = {
    "accuracy %": ("accuracy", 2),
    "bytes": ("bytes", 0),
    "gzip": ("gzip", 0),
    "MACs": ("macs", 0),
    "divergence, sum": ("predicted", 3),
    "divergence, together": ("divergence", 3),
    "CPU s": ("cpu_seconds", 0),
}
_TITLES = {
    "front": "files within budgets, and all layers alike",
    "drop": "the smallest file that loses at most a point on the validation data",
}


def tables(rows: Iterable[Mapping[str, str]]) -> str:
    """The tables as Markdown; parts without rows are left out."""
    found = []
    for (net, part), mine in grouped(rows, ("net", "part")).items():
        if part == "ranking":
            found.append(
                f"**{NETS[net]}**: Spearman's rank correlation between the divergence of one "
                f"option of one layer and the accuracy that the untrained file loses by it is "
                f"{correlation(mine):.2f} over {len(mine)} rows ({_commits(mine)}).\n"
            )
            continue
        cells = []
        for (row, epochs), same in grouped(mine, ("row", "epochs")).items():
            shown = [_mean([r[name] for r in same], digits) for name, digits in _COLUMNS.values()]
            cells.append((row, epochs, str(len(same)), *shown, _commits(same)))
        heads = ("row", "epochs", "seeds", *_COLUMNS, "commit")
        found.append(f"**{NETS[net]}**: {_TITLES[part]}\n\n{markdown(heads, cells)}\n")
    return "\n".join(found)


def _commits(rows: Iterable[Mapping[str, str]]) -> str:
    return ", ".join(dict.fromkeys(row["commit"] for row in rows))


def _mean(values: list[str], digits: int) -> str:
    return mean_and_deviation(list(map(float, values)), digits) if all(values) else ""


def write(rows: Iterable[Mapping[str, str]]) -> None:
    """Puts the tables into the page, in place of those that are there."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    PAGE.write_text(f"{before}{_BEGIN}\n\n{tables(rows)}\n{_END}{after}", encoding="utf-8")
