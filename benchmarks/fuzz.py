"""Damaged files through every public reader: a right answer, another one, or a clean error.

    python -m benchmarks.fuzz --share=0.1      # a tenth of the damage; all of it takes an hour

One small model is exported, packed and made a teacher with cached outputs. Its files are truncated
at every byte, and get 10,000 random bit flips each. Every damaged file goes through every reader of
its kind. The table counts, for each reader and kind of damage:

- right: the answer of the whole file;
- other: another answer. A `.tflite` has no checksum, so a flipped weight is another model. Files of
  tfcompress itself have one: there it is a failure;
- clean: a `ValueError` that says what was expected and what was received;
- failed: anything else. A crash would end the benchmark.

Also the longest time of one file in seconds, and the memory that the process has gained.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from tfcompress.export.bundle.files import check_golden, read_bundle

FLIPS = 10_000


@dataclasses.dataclass
class Counts:
    """What became of the damaged files of one reader.

    Attributes:
        outcomes: Outcome → how many files.
        examples: What failed, at most a few.
        slowest: Longest seconds of one file.
    """

    outcomes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    examples: list[str] = dataclasses.field(default_factory=list)
    slowest: float = 0.0


@dataclasses.dataclass(frozen=True)
class Target:
    """A file and its readers.

    Attributes:
        path: The file; it is overwritten with damaged ones.
        readers: Name → function that reads it and returns what it has found.
        sealed: Whether the file has a checksum, so that no damage may give another answer.
        cost: A reader that takes longer than others gets one in so many damaged files.
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
    tflite = folder / "model.tflite"
    whole = folder / "whole.tflite"
    tfc.export_tflite(tfc.quantize(model, calibration_data=data), tflite)
    whole.write_bytes(tflite.read_bytes())
    tfc.pack(tfc.cluster(model, 4), folder / "model.packed")
    tfc.TeacherCache.compute(model, data, folder / "teacher.npz")

    def run() -> object:
        return tfc.Runner(tflite).run_codes(data[:1])

    def teach() -> object:
        return tfc.TFLiteTeacher(tflite).predict(data[:2])

    def both() -> object:
        found = tfc.compare({"a": tflite, "b": whole}, (data[:4], np.arange(4) % 3), runs=0)
        return found["b"].agreement.largest, found["a"].scores.accuracy

    def unpack() -> object:
        return tfc.unpack(folder / "model.packed").get_weights()

    def load() -> object:
        cache = tfc.TeacherCache.load(folder / "teacher.npz")
        return cache.outputs, cache.checksum, cache.teacher_checksum, cache.activations

    def card() -> object:
        return read_bundle(folder / "model.json")

    def golden() -> object:
        return read_bundle(folder / "model.json"), check_golden(tflite)

    return [
        Target(
            tflite,
            {
                "inspect_tflite": lambda: dataclasses.asdict(tfc.inspect_tflite(tflite)),
                "Runner": run,
                "TFLiteTeacher": teach,
                "compare": both,
            },
            sealed=False,
            cost={"Runner": 2, "TFLiteTeacher": 4, "compare": 10},
        ),
        Target(tflite, {"read_bundle": card}, sealed=True),
        Target(folder / "model.json", {"read_bundle": card}, sealed=True),
        Target(folder / "model.golden.json", {"check_golden": golden}, sealed=True),
        Target(folder / "model.packed", {"unpack": unpack}, sealed=True),
        Target(folder / "teacher.npz", {"TeacherCache.load": load}, sealed=True),
    ]


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
        is_clean = text.startswith("Expected") and "Received" in text
        return ("clean" if is_clean else "failed"), f"{type(error).__name__}: {text[:200]}"
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:200]
    return ("right" if _same(found, expected) else "other"), ""


def _same(found: object, expected: object) -> bool:
    a, b = (keras.tree.flatten(keras.tree.map_structure(lambda x: x, v)) for v in (found, expected))
    return len(a) == len(b) and all(
        np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        for x, y in zip(a, b, strict=True)
    )


def fuzz(targets: list[Target], share: float, seed: int = 0) -> dict[tuple[str, str, str], Counts]:
    """Damages every file and reads it; `(file, reader, damage)` → counts."""
    found: dict[tuple[str, str, str], Counts] = {}
    for target in targets:
        whole = target.path.read_bytes()
        for name, read in target.readers.items():
            expected = read()
            part = share / target.cost.get(name, 1)
            try:
                for kind, data in damaged(whole, part, seed):
                    target.path.write_bytes(data)
                    counts = found.setdefault((target.path.name, name, kind), Counts())
                    start = time.perf_counter()
                    what, said = outcome(read, expected)
                    counts.slowest = max(counts.slowest, time.perf_counter() - start)
                    if what == "other" and target.sealed:
                        what, said = "failed", "another answer from a file with a checksum"
                    counts.outcomes[what] += 1
                    if what == "failed" and said not in counts.examples[:5]:
                        counts.examples.append(said)
            finally:
                target.path.write_bytes(whole)
    return found


def table(found: dict[tuple[str, str, str], Counts]) -> str:
    """The counts as Markdown."""
    kinds = ("right", "other", "clean", "failed")
    lines = [
        f"| file | reader | damage | {' | '.join(kinds)} | slowest, s |",
        f"|---|---|---|{'---:|' * (len(kinds) + 1)}",
    ]
    for (file, reader, damage), counts in found.items():
        numbers = " | ".join(f"{counts.outcomes[kind]:,}" for kind in kinds)
        lines.append(f"| {file} | {reader} | {damage} | {numbers} | {counts.slowest:.2f} |")
    return "\n".join(lines)


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        targets = make_targets(pathlib.Path(name))
        before = _memory()
        found = fuzz(targets, flags.FLAGS.share, flags.FLAGS.seed)
    print(table(found))
    print(f"\nPeak memory of this process: {before:.0f} MB before, {_memory():.0f} MB after")
    for key, counts in found.items():
        for example in counts.examples[:5]:
            print(key, example)
    if any(counts.outcomes["failed"] for counts in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    flags.DEFINE_float("share", 1.0, "Share of the damage.", 0.0, 1.0)
    flags.DEFINE_integer("seed", 0, "Of the flips.")
    app.run(_main)
