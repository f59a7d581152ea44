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
from tfcompress.export import Runner, export_tflite

#: Experiment → the one whose teacher it takes.
SAME_TEACHER = {"never_saw_a_3": "mnist", "lowbit_few": "lowbit"}
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

    def measure(
        self, variant: str, seed: int, train: Callable[[], keras.Model], in_file: bool = False
    ) -> None:
        """Trains unless the row is there (or not asked for), and adds it.

        Args:
            variant: Name of the row.
            seed: Of the student.
            train: Returns the trained student.
            in_file: Whether to export the student, and to measure its file in LiteRT too.
        """
        if not self.wants(variant, seed):
            return
        keras.utils.set_random_seed(seed)
        start = time.time()
        student = train()
        seconds = round(time.time() - start)
        x_test, y_test = self.data[1]
        logits = student.predict(x_test, batch_size=500, verbose=0)
        litert = float("nan")
        if in_file:
            path = self.output / f"{self.experiment}_{variant.split()[0]}_{seed}.tflite"
            export_tflite(student, path, verify_data=x_test[:500])
            found = next(iter(Runner(path).predict(x_test).values()))
            litert = 100 * float(np.mean(found.argmax(-1) == y_test))
        self.add(variant, seed, logits, student, seconds, litert)

    def wants(self, variant: str, seed: int) -> bool:
        """Whether the row is asked for and not there yet."""
        if self.variants and variant not in self.variants:
            return False
        if self.results.has(**self._key(variant, seed)):
            print(f"{variant}, seed {seed}: already in distill.csv")
            return False
        return True

    def add(
        self,
        variant: str,
        seed: int,
        logits,
        student: keras.Model,
        seconds: int,
        litert: float = float("nan"),
    ) -> None:
        """Adds the row of a run with these test logits."""
        y_test = self.data[1][1]
        wrong = logits.argmax(-1) != y_test
        accuracy = 100 * (1 - float(wrong.mean()))
        self.results.add(
            **self._key(variant, seed),
            test_accuracy=f"{accuracy:.3f}",
            litert_accuracy=f"{litert:.3f}",
            test_errors=int(wrong.sum()),
            errors_on_threes=int(wrong[y_test == 3].sum()),
            parameters=sum(int(np.prod(v.shape)) for v in student.trainable_variables),
            seconds=seconds,
        )
        print(f"{variant}, seed {seed}: {accuracy:.2f} %, {int(wrong.sum())} errors")

    def teacher(self, train: Callable[[], keras.Model]) -> keras.Model:
        """The experiment's teacher: trained once, then read."""
        of = SAME_TEACHER.get(self.experiment, self.experiment)
        name = f"teacher_{of}_{self.teacher_epochs}_{len(self.data[0][0])}.keras"
        path = pathlib.Path(self.teacher_path or self.output / name)
        model = kept_model(path, train)
        logits = model.predict(self.data[1][0], batch_size=500, verbose=0)
        print(f"teacher: {int((logits.argmax(-1) != self.data[1][1]).sum())} test errors")
        return model

    def cache(self, teacher: keras.Model, x, name: str, layers: Sequence[str] = ()) -> TeacherCache:
        """The teacher's outputs on `x`, and those of its `layers`: computed once, then read."""
        path = self.output / f"{name}_{self.teacher_epochs}_{len(x)}.npz"
        return TeacherCache.compute(teacher, x, path, layers=layers)

    def _key(self, variant: str, seed: int) -> dict:
        values = (self.experiment, variant, seed, self.epochs, len(self.data[0][0]))
        return dict(zip(KEY, values, strict=True))


def table(rows: Sequence[dict[str, str]]) -> str:
    """Mean ± deviation over seeds as Markdown, in the order of the rows."""
    columns = {
        "test_accuracy": ("accuracy %", 2),
        "litert_accuracy": ("LiteRT %", 2),
        "test_errors": ("errors", 1),
        "errors_on_threes": ("on threes", 1),
    }
    by = ("variant", "epochs", "train_samples", "parameters")
    heads = ("run", "epochs", "samples", "parameters", "seeds", *(h for h, _ in columns.values()))
    means = {name: digits for name, (_, digits) in columns.items()}
    return markdown(heads, summary(rows, by, means))
