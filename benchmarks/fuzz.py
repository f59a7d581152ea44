"""Damaged files through every public reader: a right answer, another one, or a clean error.

    python -m benchmarks.fuzz                  # all of it: an hour; rows are kept in a table
    python -m benchmarks.fuzz --share=0.1      # a tenth of the damage
    python -m benchmarks.fuzz --print          # the table of what was counted

One small model is exported, packed, made a teacher with cached outputs, and measured layer by
layer. Its files are truncated at every byte, and get 10,000 random bit flips each. Every damaged
file goes through every reader of its kind, in Python and on the command line. The table counts, for
each reader and kind of damage:

- right: the answer of the whole file;
- other: another answer. A `.tflite` has no checksum, so a flipped weight is another model, and a
  recipe is what its author writes. Files that tfcompress alone writes have one: there it is a
  failure;
- clean: a `ValueError` that says what was expected and what was received, and on the command line
  the same in one line, with exit code 2;
- failed: anything else. A crash would end the benchmark.

Also the longest time of one file in seconds, and by how many megabytes the peak memory of the
process has grown. With a share below 1, a reader that takes long gets a part of that share.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import functools
import importlib.util
import io
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from recipes import origin
from tfcompress.analysis.search.state import State
from tfcompress.export.bundle.files import check_golden, read_bundle
from tfcompress.tools.samples import load_samples
from tfcompress_cli.main import main

FLIPS = 10_000
_OUTCOMES = ("right", "other", "clean", "failed")
_COLUMNS = ("file", "reader", "damage", *_OUTCOMES, "seconds", "megabytes", "commit")


@dataclasses.dataclass
class Counts:
    """What became of the damaged files of one reader.

    Attributes:
        outcomes: Outcome → how many files.
        examples: What failed, at most a few.
        slowest: Longest seconds of one file.
        memory: Megabytes by which the peak of the process has grown.
    """

    outcomes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: list[str] = dataclasses.field(default_factory=list)
    slowest: float = 0.0
    memory: float = 0.0


@dataclasses.dataclass(frozen=True)
class Target:
    """A file and its readers.

    Attributes:
        path: The file; it is overwritten with damaged ones.
        readers: Name → function that reads it and returns what it has found.
        sealed: Whether the file has a checksum, so that no damage may give another answer.
        cost: A reader that takes longer than others gets one in so many damaged files, unless all
            of the damage is asked for.
    """

    path: pathlib.Path
    readers: dict[str, Callable[[], object]]
    sealed: bool
    cost: dict[str, int] = dataclasses.field(default_factory=dict)


def make_targets(folder: pathlib.Path) -> list[Target]:
    """Writes a model in every format, and says how each is read."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1), name="image")
    x = keras.layers.Conv2D(2, 3, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(keras.layers.Flatten()(x)))
    data = np.random.default_rng(0).uniform(0, 1, (16, 6, 6, 1)).astype(np.float32)
    tflite, whole = folder / "model.tflite", folder / "whole.tflite"
    tfc.export_tflite(tfc.quantize(model, calibration_data=data), tflite)
    whole.write_bytes(tflite.read_bytes())
    card, golden = folder / "model.json", folder / "model.golden.json"
    packed = folder / "model.packed"
    tfc.pack(tfc.cluster(model, 4), packed)
    # `tfcompress bundle` writes a card beside the file.
    bundled = folder / "bundled" / "bundled.tflite"
    bundled.parent.mkdir()
    bundled.write_bytes(tflite.read_bytes())
    labelled = folder / "labelled.npz"
    np.savez(labelled, x=data[:4], y=np.arange(4) % 3)

    def run() -> object:
        return tfc.Runner(tflite).run_codes(data[:1])

    def teach() -> object:
        return tfc.TFLiteTeacher(tflite).predict(data[:2])

    def compare() -> object:
        found = tfc.compare({"a": tflite, "b": whole}, (data[:4], np.arange(4) % 3), runs=0)
        return found["b"].agreement.largest, found["a"].scores.accuracy

    def explain() -> object:
        return str(tfc.explain_difference(whole, tflite, (data[:4], np.arange(4) % 3)))

    def evaluate() -> object:
        return tfc.evaluate_file(tflite, model, (data[:4], np.arange(4) % 3), metric="accuracy")

    def time_it() -> object:
        return sorted(tfc.compare_latency({"a": tflite}, runs=1).medians)

    def time_by_command() -> object:
        # What it prints is never the same.
        return bool(command("benchmark", tflite, "--runs", 1)())

    def read_all() -> object:
        return read_bundle(card), check_golden(tflite)

    report = command("report", tflite)
    return [
        Target(
            tflite,
            {
                "inspect_tflite": lambda: dataclasses.asdict(tfc.inspect_tflite(tflite)),
                "Runner": run,
                "TFLiteTeacher": teach,
                "compare": compare,
                "explain_difference": explain,
                "evaluate_file": evaluate,
                "compare_latency": time_it,
                "tfcompress inspect": command("inspect", tflite),
                "tfcompress lint": command("lint", tflite, "--no-timing"),
                "tfcompress compare": command(
                    *("compare", f"a={tflite}", f"b={whole}"), "--data", labelled, "--runs", 0
                ),
                "tfcompress benchmark": time_by_command,
            },
            sealed=False,
            cost={
                **{"Runner": 2, "TFLiteTeacher": 4, "compare": 10, "explain_difference": 10},
                **{"evaluate_file": 4, "compare_latency": 10},
                **{"tfcompress inspect": 2, "tfcompress lint": 4},
                **{"tfcompress compare": 10, "tfcompress benchmark": 10},
            },
        ),
        Target(
            tflite,
            {
                "read_bundle": lambda: read_bundle(card),
                "tfcompress report": report,
                "tfcompress bundle --android": command(
                    *("bundle", tflite, "--android", folder / "module")
                ),
            },
            sealed=True,
            cost={"tfcompress report": 4, "tfcompress bundle --android": 4},
        ),
        Target(
            bundled,
            {"tfcompress bundle": command("bundle", bundled)},
            sealed=False,
            cost={"tfcompress bundle": 4},
        ),
        Target(
            card,
            {"read_bundle": lambda: read_bundle(card), "tfcompress report": report},
            sealed=True,
            cost={"tfcompress report": 4},
        ),
        Target(golden, {"check_golden": read_all}, sealed=True),
        Target(packed, {"unpack": lambda: tfc.unpack(packed).get_weights()}, sealed=True),
        *_caches(folder, model, data),
        *_recipes(folder),
    ]


def _caches(folder: pathlib.Path, model: keras.Model, data: np.ndarray) -> list[Target]:
    """What was computed before, and is read to continue: teachers, rows of sensitivities."""
    teacher, table = folder / "teacher.npz", folder / "sensitivity.json"
    tfc.TeacherCache.compute(model, data, teacher)
    tfc.sensitivity(model, data, options=["int8", "int4"], verbose=0).save(table)
    work = folder / "search"
    State(work, {"model": model}, {"epochs": 1}).set("key", {"metric": 0.5, "layers": ["conv"]})
    samples = folder / "samples.npz"
    np.savez(samples, x=data, y=np.arange(16) % 3)

    def load() -> object:
        cache = tfc.TeacherCache.load(teacher)
        return cache.outputs, cache.checksum, cache.teacher_checksum, cache.activations

    def arrays() -> object:
        found = load_samples(samples)
        return found.x, found.y

    return [
        Target(teacher, {"TeacherCache.load": load}, sealed=True),
        Target(
            table,
            {"Sensitivity.load": lambda: tfc.Sensitivity.load(table).to_rows()},
            sealed=True,
        ),
        Target(
            work / "search.json",
            {"search": lambda: State(work, {"model": model}, {"epochs": 1}).get("key")},
            sealed=True,
        ),
        Target(samples, {"--data": arrays}, sealed=False),
    ]


def _recipes(folder: pathlib.Path) -> list[Target]:
    recipe = tfc.Recipe(
        [
            {"prune": {"sparsity": {"conv": 0.5}, "end_step": 8}},
            {"quantize": {"default": "int8", "layers": {"logits": "int4", "conv": None}}},
            {"train": {"epochs": 1, "learning_rate": 0.01}},
        ],
        name="fuzz",
        budgets=[tfc.Bytes(4000, gzip=True)],
    )
    found = []
    # PyYAML is an extra.
    endings = [".json"] + ([".yaml"] if importlib.util.find_spec("yaml") else [])
    for name in (f"recipe{ending}" for ending in endings):
        path = folder / name
        recipe.save(path)
        read = functools.partial(tfc.Recipe.load, path)
        found.append(Target(path, {"Recipe.load": read}, sealed=False))
    return found


def command(*arguments: object) -> Callable[[], object]:
    """A command of the command line as a reader: what it prints, or its line of error."""

    def run() -> object:
        text, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(error):
            code = main([str(argument) for argument in arguments])
        if not code:
            return text.getvalue()
        said = error.getvalue().strip()
        if code != 2 or "\n" in said:
            raise RuntimeError(f"exit code {code}: {said}")
        raise ValueError(said.removeprefix("error: "))

    return run


def damaged(data: bytes, share: float, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields the kind of damage and the bytes: truncations, then flips of one bit."""
    random = np.random.default_rng(seed)
    ends = np.arange(len(data))
    if share < 1:
        ends = np.sort(random.choice(ends, max(int(share * len(data)), 1), replace=False))
    for end in ends:
        yield "truncated", data[:end]
    for position in random.integers(0, 8 * len(data), int(FLIPS * share)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        yield "flipped", bytes(flipped)


def outcome(read: Callable[[], object], expected: object) -> tuple[str, str]:
    """What a reader makes of a file: `(outcome, what it said)`."""
    try:
        found = read()
    except ValueError as error:
        text = str(error)
        # An unknown key of a recipe is named with its line.
        is_clean = isinstance(error, tfc.RecipeError) or (
            text.startswith("Expected") and "Received" in text
        )
        return ("clean" if is_clean else "failed"), f"{type(error).__name__}: {text[:200]}"
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:200]
    return ("right" if _same(found, expected) else "other"), ""


def _same(found: object, expected: object) -> bool:
    a, b = (keras.tree.flatten(keras.tree.map_structure(lambda x: x, v)) for v in (found, expected))
    return len(a) == len(b) and all(
        np.array_equal(x, y) if np.ndarray in (type(x), type(y)) else x == y
        for x, y in zip(a, b, strict=True)
    )


def fuzz(
    targets: list[Target], share: float, seed: int = 0, skip: Container[tuple[str, str]] = ()
) -> Iterator[tuple[tuple[str, str, str], Counts]]:
    """Damages every file and reads it: yields `((file, reader, damage), counts)`.

    Args:
        targets: The files.
        share: Of the damage.
        seed: Of the flips.
        skip: Pairs of file and reader that are left out.
    """
    for target in targets:
        whole = target.path.read_bytes()
        for name, read in target.readers.items():
            if (target.path.name, name) in skip:
                continue
            found: dict[str, Counts] = {}
            expected, before = read(), _memory()
            part = share if share == 1 else share / target.cost.get(name, 1)
            try:
                for kind, data in damaged(whole, part, seed):
                    target.path.write_bytes(data)
                    counts = found.setdefault(kind, Counts())
                    start = time.perf_counter()
                    what, said = outcome(read, expected)
                    counts.slowest = max(counts.slowest, time.perf_counter() - start)
                    counts.memory = _memory() - before
                    if what == "other" and target.sealed:
                        what, said = "failed", "another answer from a file with a checksum"
                    counts.outcomes[what] += 1
                    if what == "failed" and said not in counts.examples[:5]:
                        counts.examples.append(said)
            finally:
                target.path.write_bytes(whole)
            for kind, counts in found.items():
                yield (target.path.name, name, kind), counts


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as Markdown."""
    lines = [
        f"| file | reader | damage | {' | '.join(_OUTCOMES)} | slowest, s | memory, MB |",
        f"|---|---|---|{'---:|' * (len(_OUTCOMES) + 2)}",
    ]
    for row in rows:
        counted = [f"{int(row[kind]):,}" for kind in _OUTCOMES]
        words = [row["file"], row["reader"], row["damage"], *counted]
        lines.append(f"| {' | '.join([*words, row['seconds'], row['megabytes']])} |")
    return "\n".join(lines)


def as_row(key: tuple[str, str, str], counts: Counts) -> dict[str, str]:
    """One row of the table."""
    numbers = (str(counts.outcomes[kind]) for kind in _OUTCOMES)
    values = (*key, *numbers, f"{counts.slowest:.2f}", f"{counts.memory:.0f}", origin.commit())
    return dict(zip(_COLUMNS, values, strict=True))


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _read(path: pathlib.Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _main(arguments: list[str]) -> None:
    is_whole = flags.FLAGS.share == 1.0
    path = pathlib.Path(flags.FLAGS.csv)
    rows = _read(path) if is_whole else []
    examples = []
    if not flags.FLAGS.print:
        done = {(row["file"], row["reader"]) for row in rows}
        wanted = flags.FLAGS.readers
        with tempfile.TemporaryDirectory() as name:
            targets = make_targets(pathlib.Path(name))
            if wanted:
                done |= {(t.path.name, r) for t in targets for r in t.readers if r not in wanted}
            for key, counts in fuzz(targets, flags.FLAGS.share, flags.FLAGS.seed, done):
                rows.append(as_row(key, counts))
                examples += [(key, example) for example in counts.examples[:5]]
                print(rows[-1], counts.examples[:5], flush=True)
                if is_whole:
                    is_new = not path.exists()
                    with path.open("a", newline="", encoding="utf-8") as file:
                        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
                        if is_new:
                            writer.writeheader()
                        writer.writerow(rows[-1])
    print(table(rows))
    for key, example in examples:
        print(key, example)
    if any(int(row["failed"]) for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    flags.DEFINE_float("share", 1.0, "Share of the damage.", 0.0, 1.0)
    flags.DEFINE_integer("seed", 0, "Of the flips.")
    flags.DEFINE_list("readers", [], "Which; by default all.")
    flags.DEFINE_bool("print", False, "Print the table and count nothing.")
    flags.DEFINE_string("csv", "recipes/results/fuzz.csv", "Table of all of the damage.")
    app.run(_main)
