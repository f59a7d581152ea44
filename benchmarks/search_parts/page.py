"""The tables of `docs/search.md`, from the rows of `search.csv`."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping

from benchmarks import results_page
from benchmarks.search_parts.ranking import correlation
from recipes.results import grouped

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "search.md"

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
                f"{correlation(mine):.2f} over {len(mine)} rows ({results_page.commits(mine)}).\n"
            )
            continue
        table = results_page.table(mine, _COLUMNS)
        found.append(f"**{NETS[net]}**: {_TITLES[part]}\n\n{table}\n")
    return "\n".join(found)


def write(rows: Iterable[Mapping[str, str]]) -> None:
    """Puts the tables into the page."""
    results_page.put(PAGE, tables(rows))
