"""The book of `distill.py`: runs as rows of a file, teachers kept, tables from the rows."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

from recipes.kept import kept_model
from recipes.results import Results, markdown, summary
from tfcompress.distillation import TeacherCache

KEY = ("experiment", "variant", "seed", "epochs", "train_samples")


@dataclasses.dataclass
class Run:
    """The settings of one call of the recipe, and where its results go.

    Attributes:
        experiment: Its name.
        seeds: Seeds of the students.
        epochs: Epochs of a student.
        teacher_epochs: Epochs of the teacher.
        data: `(x, y), (x_test, y_test)`.
        output: Folder of `distill.csv`, teachers and caches.
        teacher_path: A trained teacher, instead of training one.
        variants: The only rows to run; all where empty.
    """

    experiment: str
    seeds: Sequence[int]
    epochs: int
    teacher_epochs: int
    data: tuple
    output: pathlib.Path
    teacher_path: str | None = None
    variants: Sequence[str] = ()

    @property
    def results(self) -> Results:
        return Results(self.output / "distill.csv", KEY)

    @property
    def rows(self) -> list[dict[str, str]]:
        return [row for row in self.results.rows if row["experiment"] == self.experiment]

    def measure(self, variant: str, seed: int, train: Callable[[], keras.Model]) -> None:
        """Trains unless the row is there (or not asked for), and adds it."""
        if self.variants and variant not in self.variants:
            return
        if self.results.has(**self._key(variant, seed)):
            print(f"{variant}, seed {seed}: already in distill.csv")
            return
        keras.utils.set_random_seed(seed)
        start = time.time()
        student = train()
        seconds = round(time.time() - start)
        logits = student.predict(self.data[1][0], batch_size=500, verbose=0)
        self.add(variant, seed, logits, student, seconds)

    def add(self, variant: str, seed: int, logits, student: keras.Model, seconds: int) -> None:
        """Adds the row of a run with these test logits."""
        y_test = self.data[1][1]
        wrong = logits.argmax(-1) != y_test
        accuracy = 100 * (1 - float(wrong.mean()))
        self.results.add(
            **self._key(variant, seed),
            test_accuracy=f"{accuracy:.3f}",
            test_errors=int(wrong.sum()),
            errors_on_threes=int(wrong[y_test == 3].sum()),
            parameters=sum(int(np.prod(v.shape)) for v in student.trainable_variables),
            seconds=seconds,
        )
        print(f"{variant}, seed {seed}: {accuracy:.2f} %, {int(wrong.sum())} errors")

    def teacher(self, train: Callable[[], keras.Model]) -> keras.Model:
        """The experiment's teacher: trained once, then read."""
        data = "mnist" if self.experiment == "never_saw_a_3" else self.experiment
        name = f"teacher_{data}_{self.teacher_epochs}_{len(self.data[0][0])}.keras"
        path = pathlib.Path(self.teacher_path or self.output / name)
        model = kept_model(path, train)
        logits = model.predict(self.data[1][0], batch_size=500, verbose=0)
        print(f"teacher: {int((logits.argmax(-1) != self.data[1][1]).sum())} test errors")
        return model

    def cache(self, teacher: keras.Model, x, name: str) -> TeacherCache:
        """The teacher's outputs on `x`: computed once, then read."""
        path = self.output / f"{name}_{self.teacher_epochs}_{len(x)}.npz"
        return TeacherCache.compute(teacher, x, path)

    def _key(self, variant: str, seed: int) -> dict:
        values = (self.experiment, variant, seed, self.epochs, len(self.data[0][0]))
        return dict(zip(KEY, values, strict=True))


def table(rows: Sequence[dict[str, str]]) -> str:
    """Mean ± deviation over seeds as Markdown, in the order of the rows."""
    heads = ("run", "epochs", "samples", "parameters", "seeds", "accuracy %", "errors", "on threes")
    by = ("variant", "epochs", "train_samples", "parameters")
    means = {"test_accuracy": 2, "test_errors": 1, "errors_on_threes": 1}
    return markdown(heads, summary(rows, by, means))
