"""The table of sensitivities: rows, printed, drawn and saved."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from tfcompress.files.sealed_json import read_sealed, sealed
from tfcompress.files.writing import write_atomically
from tfcompress.tables import render_table

_FORMAT = "tfcompress sensitivity 2"


@dataclasses.dataclass(frozen=True)
class Row:
    """What one option of one layer costs.

    Attributes:
        target: The layer, or the layers whose channels go together.
        option: What is done: `"int4"`, `"sparsity=0.5"`, `"channels=0.75"`, `"rank=0.5"`, ...
        divergence: Mean distance of the outputs from the float model's, >= 0; in nats for a KL
            divergence.
        drop: How much worse the metric is, in its units; `None` where none was asked for.
        parameters: Weights that the option is about.
        measured: False for an estimate: ½ Σ F Δw², F the diagonal of the Fisher information, times
            the ratio that measured rows have to their estimates.
    """

    target: str
    option: str
    divergence: float
    drop: float | None
    parameters: int
    measured: bool = True


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What each option of each layer costs. Print it; iterating gives its rows, worst first.

    Attributes:
        model: Name of the model.
        rows: One row per layer and option, worst first.
        measure: What `divergence` is.
        samples: How many samples it was measured on.
        origin: Checksums of model and data, and the metric.
        skipped: Layer → why some option is left out.
    """

    model: str
    rows: tuple[Row, ...]
    measure: str
    samples: int
    origin: Mapping[str, str]
    skipped: Mapping[str, str]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def options(self) -> list[str]:
        """The options, the cheapest on average first."""
        costs: dict[str, list[float]] = {}
        for row in self.rows:
            costs.setdefault(row.option, []).append(row.divergence)
        return sorted(costs, key=lambda o: sum(costs[o]) / len(costs[o]))

    def row(self, target: str, option: str) -> Row:
        """The row of a layer and an option.

        Raises:
            KeyError: There is none.
        """
        for row in self.rows:
            if (row.target, row.option) == (target, option):
                return row
        raise KeyError(f"no row for {target!r} and {option!r}")

    def worst_first(self, option: str) -> list[str]:
        """The layers that have an option, by what it costs there."""
        return [row.target for row in self.rows if row.option == option]

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows as plain dictionaries."""
        return [dataclasses.asdict(row) for row in self.rows]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the table as JSON."""
        values = sealed({"format": _FORMAT, **dataclasses.asdict(self)})
        write_atomically(path, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Sensitivity:
        """Reads a table that `save` wrote.

        Raises:
            ValueError: Another file, or one that is damaged or was edited.
        """
        return read_table(path)

    def plot(self, path: Any = None) -> Any:
        """Draws the rows as bars, one color per option, on a logarithmic axis.

        Args:
            path: Where to save the picture; by default it is not saved.

        Returns:
            The matplotlib figure.
        """
        from matplotlib.figure import Figure

        targets = list(dict.fromkeys(row.target for row in self.rows))
        figure = Figure(figsize=(8, 0.3 * len(targets) + 1.5), layout="constrained")
        axes = figure.subplots()
        for option in self.options:
            rows = [row for row in self.rows if row.option == option]
            places = [targets.index(row.target) for row in rows]
            axes.plot([max(row.divergence, 1e-9) for row in rows], places, "o", label=option)
        axes.set_yticks(range(len(targets)), targets)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel(self.measure)
        axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure

    def __str__(self) -> str:
        targets = list(dict.fromkeys(row.target for row in self.rows))
        options = self.options
        cells = {(row.target, row.option): row for row in self.rows}
        lines = [(t, *(_cell(cells.get((t, o))) for o in options)) for t in targets]
        title = f"Sensitivity of {self.model}: {self.measure}, {self.samples} samples"
        text = render_table(title, ("layer", *options), lines, width=160)
        if any(not row.measured for row in self.rows):
            text += "~: estimated by the Fisher information, not measured\n"
        drops = [row for row in self.rows if row.drop is not None]
        if drops:
            worst = sorted(drops, key=lambda row: -(row.drop or 0.0))[:10]
            table = [(r.target, r.option, r.drop) for r in worst]
            heads = ("layer", "option", "drop")
            text += render_table(f"Largest drops of {self.origin['metric']}", heads, table)
        for name, reason in self.skipped.items():
            text += f"left out: {name}: {reason}\n"
        return text


def read_table(path: str | os.PathLike) -> Sensitivity:
    """Reads a table that `Sensitivity.save` wrote.

    Raises:
        ValueError: Another file, or one that is damaged or was edited.
    """
    try:
        values = read_sealed(path, _FORMAT)
        rows = tuple(_checked(Row(**row)) for row in values.pop("rows"))
        return Sensitivity(rows=rows, **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a table of sensitivities in JSON. Received: {os.fspath(path)!r}, which "
            f"cannot be read ({error})."
        ) from error


def _checked(row: Row) -> Row:
    """Refuses, with a `TypeError`, a row that `save` cannot have written."""
    texts, numbers = (row.target, row.option), (row.divergence, row.drop or 0.0, row.parameters)
    if not all(isinstance(text, str) for text in texts) or not all(
        isinstance(number, int | float) for number in numbers
    ):
        raise TypeError(f"{row!r:.200} is no row")
    return row


def _cell(row: Row | None) -> Any:
    if row is None:
        return ""
    return row.divergence if row.measured else f"~{row.divergence:.2g}"
