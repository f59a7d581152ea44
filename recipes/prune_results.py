"""Tables and the plot of `prune.py`, made from the rows of its file."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from recipes.results import grouped, markdown, summary

#: What tells runs of an experiment apart, without the seed.
SETTING = ("method", "sparsity", "epochs", "train_samples")
KEY = ("experiment", *SETTING, "seed")


def table(rows: Sequence[dict[str, str]], command: str) -> str:
    """Mean ± deviation over seeds, as Markdown, with the command that makes it."""
    percent = [
        {**row, **{name: 100 * float(row[name]) for name in ("reached", "drop")}} for row in rows
    ]
    means = {"reached": 2, "error": 2, "drop": 2, "seconds": 0}
    heads = ("method", "sparsity", "epochs", "samples", "seeds")
    heads = (*heads, "zeros %", "error %", "drop, points", "seconds")
    lines = [
        f"    {command}",
        "",
        markdown(heads, summary(percent, SETTING, means)),
        "",
        *_against_random(rows),
    ]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, str]], path: pathlib.Path) -> None:
    """Draws the error over the sparsity, one line per method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[tuple[float, float]]] = {}
    for (method, sparsity, *_), group in grouped(rows, SETTING).items():
        lines.setdefault(method, []).append((100 * float(sparsity), np.mean(_errors(group))))
    for index, (method, points) in enumerate(lines.items()):
        if method == "dense":
            axes.axhline(points[0][1], color="black", linestyle=":", label="dense")
            continue
        axes.plot(*zip(*sorted(points), strict=True), "osv^D"[index % 5] + "-", label=method)
    axes.set(xlabel="sparsity %", ylabel="test error %", yscale="log")
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)


def _errors(group: Sequence[dict[str, str]]) -> list[float]:
    return [float(row["error"]) for row in group]


def _against_random(rows: Sequence[dict[str, str]]) -> list[str]:
    """Says of each criterion whether it beats random by two pooled deviations."""
    groups = grouped(rows, SETTING)
    lines = []
    for (method, *setting), group in groups.items():
        control = groups.get(("random", *setting))
        if method in ("dense", "random", "static") or not control:
            continue
        ours, random = _errors(group), _errors(control)
        gain = np.mean(random) - np.mean(ours)
        text = f"- {method} at {100 * float(setting[0]):g} %: {gain:.2f} points better than random"
        if min(len(ours), len(random)) < 2:
            lines.append(f"{text} (one seed).")
            continue
        pooled = np.sqrt((np.var(ours, ddof=1) + np.var(random, ddof=1)) / 2)
        verdict = "above" if gain > 2 * pooled else "NOT above"
        lines.append(f"{text}, {verdict} two pooled deviations ({2 * pooled:.2f}).")
    return lines
