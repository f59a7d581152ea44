"""The book of `distill.py`: runs as rows of a file, teachers kept, tables from the rows."""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

from tfcompress.distillation import TeacherCache


@dataclasses.dataclass(frozen=True)
class Row:
    """One finished run."""

    experiment: str
    variant: str
    seed: int
    epochs: int
    train_samples: int
    test_accuracy: float
    test_errors: int
    errors_on_threes: int
    parameters: int
    seconds: int

    @property
    def key(self) -> tuple:
        return (self.experiment, self.variant, self.seed, self.epochs, self.train_samples)


@dataclasses.dataclass
class Run:
    """The settings of one call of the recipe, and where its results go."""

    experiment: str
    seeds: Sequence[int]
    epochs: int
    teacher_epochs: int
    data: tuple
    output: pathlib.Path
    teacher_path: str | None = None
    variants: Sequence[str] = ()

    @property
    def rows(self) -> list[Row]:
        path = self.output / "distill.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            types = {f.name: {"str": str, "int": int, "float": float}[f.type] for f in FIELDS}
            return [Row(**{k: types[k](v) for k, v in r.items()}) for r in csv.DictReader(file)]

    def measure(self, variant: str, seed: int, train: Callable[[], keras.Model]) -> None:
        """Trains unless the row is there (or not asked for), and adds it."""
        if self.variants and variant not in self.variants:
            return
        (x, _), (x_test, _) = self.data
        key = (self.experiment, variant, seed, self.epochs, len(x))
        if any(row.key == key for row in self.rows):
            print(f"{variant}, seed {seed}: already in distill.csv")
            return
        keras.utils.set_random_seed(seed)
        start = time.time()
        student = train()
        seconds = round(time.time() - start)
        self.add(
            variant, seed, student.predict(x_test, batch_size=500, verbose=0), student, seconds
        )

    def add(self, variant: str, seed: int, logits, student: keras.Model, seconds: int) -> None:
        (x, _), (_, y_test) = self.data
        wrong = logits.argmax(-1) != y_test
        row = Row(
            self.experiment,
            variant,
            seed,
            self.epochs,
            len(x),
            round(100 * (1 - float(wrong.mean())), 3),
            int(wrong.sum()),
            int(wrong[y_test == 3].sum()),
            sum(int(np.prod(v.shape)) for v in student.trainable_variables),
            seconds,
        )
        path = self.output / "distill.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow([f.name for f in FIELDS])
            writer.writerow(dataclasses.astuple(row))
        print(f"{variant}, seed {seed}: {row.test_accuracy:.2f} %, {row.test_errors} errors")

    def teacher(self, train: Callable[[], keras.Model]) -> keras.Model:
        """The experiment's teacher: trained once, then read."""
        data = "mnist" if self.experiment == "never_saw_a_3" else self.experiment
        name = f"teacher_{data}_{self.teacher_epochs}_{len(self.data[0][0])}.keras"
        path = pathlib.Path(self.teacher_path or self.output / name)
        if not path.exists():
            keras.utils.set_random_seed(0)
            model = train()
            partial = path.with_name(f"partial_{path.name}")
            model.save(partial)
            os.replace(partial, path)
        model = keras.saving.load_model(path, compile=False)
        logits = model.predict(self.data[1][0], batch_size=500, verbose=0)
        print(f"teacher: {int((logits.argmax(-1) != self.data[1][1]).sum())} test errors")
        return model

    def cache(self, teacher: keras.Model, x, name: str, names: Sequence[str] = ()) -> TeacherCache:
        path = self.output / f"{name}_{self.teacher_epochs}_{len(x)}.npz"
        return TeacherCache.compute(teacher, x, path, layers=names)


FIELDS = dataclasses.fields(Row)


def table(rows: Sequence[Row]) -> str:
    """Mean ± deviation over seeds as Markdown, in the order of the rows."""
    lines = [
        "| run | epochs | seeds | parameters | accuracy % | errors | on threes |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.variant, row.epochs, row.train_samples), []).append(row)
    for (variant, epochs, _), group in groups.items():
        columns = ("test_accuracy", "test_errors", "errors_on_threes")
        accuracy, errors, threes = (np.array([getattr(r, c) for r in group]) for c in columns)
        deviation = accuracy.std(ddof=1) if len(group) > 1 else 0.0
        lines.append(
            f"| {variant} | {epochs} | {len(group)} | {group[0].parameters:,} | "
            f"{accuracy.mean():.2f} ± {deviation:.2f} | {errors.mean():.1f} | {threes.mean():.1f} |"
        )
    return "\n".join(lines)
