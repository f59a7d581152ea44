"""The book of `prune.py`: one row per finished run, tables and the plot made from the rows."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """One finished run, measured on its last epoch."""

    experiment: str
    model: str
    method: str
    sparsity: float
    seed: int
    epochs: int
    train_samples: int
    reached: float
    error: float
    drop: float
    seconds: int

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return (
            self.experiment,
            self.method,
            self.sparsity,
            self.seed,
            self.epochs,
            self.train_samples,
        )


_TYPES = {"str": str, "int": int, "float": float}


class Book:
    """The rows in `prune.csv`.

    Args:
        folder: Where the file is; made if it is not there.
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = pathlib.Path(folder).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "prune.csv"

    def rows(self, experiment: str | None = None) -> list[Row]:
        """Returns the rows of one experiment, or of all."""
        if not self.path.exists():
            return []
        kinds = {field.name: _TYPES[field.type] for field in dataclasses.fields(Row)}
        with self.path.open(newline="") as file:
            rows = [
                Row(**{name: kinds[name](value) for name, value in line.items()})
                for line in csv.DictReader(file)
            ]
        return [row for row in rows if experiment in (None, row.experiment)]

    def has(self, key: tuple) -> bool:
        return any(row.key == key for row in self.rows())

    def add(self, row: Row) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow([field.name for field in dataclasses.fields(Row)])
            writer.writerow(dataclasses.astuple(row))
        print(
            f"{row.experiment}: {row.method} at {100 * row.sparsity:g} %, seed {row.seed}: "
            f"error {row.error:.2f} %, zeros {100 * row.reached:.2f} %, {row.seconds} s",
            flush=True,
        )


def table(rows: Sequence[Row], command: str) -> str:
    """Mean ± deviation over seeds, as Markdown, with the command that makes it."""
    lines = [
        f"    {command}",
        "",
        "| method | sparsity | zeros | epochs | seeds | error % | drop | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in _groups(rows).values():
        first = group[0]
        seeds = ", ".join(str(row.seed) for row in group)
        zeros = 100 * np.mean([row.reached for row in group])
        drops = [row.drop for row in group]
        drop = "" if np.isnan(drops).all() else f"{100 * np.mean(drops):.2f}"
        lines.append(
            f"| {first.method} | {100 * first.sparsity:g} % | {zeros:.2f} % | {first.epochs} | "
            f"{seeds} | {_mean(group)} | {drop} | {np.mean([r.seconds for r in group]):.0f} |"
        )
    lines += ["", *_against_random(rows)]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the error over the sparsity, one line per method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[tuple[float, float]]] = {}
    for group in _groups(rows).values():
        error = float(np.mean([row.error for row in group]))
        lines.setdefault(group[0].method, []).append((100 * group[0].sparsity, error))
    for index, (method, points) in enumerate(lines.items()):
        if method == "dense":
            axes.axhline(points[0][1], color="black", linestyle=":", label="dense")
            continue
        axes.plot(*zip(*sorted(points), strict=True), "osv^D"[index % 5] + "-", label=method)
    axes.set(xlabel="sparsity %", ylabel="test error %", yscale="log")
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)


def _groups(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.sparsity, row.epochs, row.train_samples), []).append(row)
    return groups


def _mean(group: Sequence[Row]) -> str:
    errors = [row.error for row in group]
    if len(errors) == 1:
        return f"{errors[0]:.2f}"
    return f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}"


def _against_random(rows: Sequence[Row]) -> list[str]:
    """Says of each criterion whether it beats random by two pooled deviations."""
    groups = _groups(rows)
    lines = []
    for (method, *setting), group in groups.items():
        control = groups.get(("random", *setting))
        if method in ("dense", "random", "static") or not control:
            continue
        if min(len(group), len(control)) < 2:
            continue
        ours, random = ([row.error for row in g] for g in (group, control))
        pooled = np.sqrt((np.var(ours, ddof=1) + np.var(random, ddof=1)) / 2)
        gain = np.mean(random) - np.mean(ours)
        verdict = "above" if gain > 2 * pooled else "NOT above"
        lines.append(
            f"- {method} at {100 * setting[0]:g} %: {gain:.2f} points better than random, "
            f"{verdict} two pooled deviations ({2 * pooled:.2f})."
        )
    return lines
