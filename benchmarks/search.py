"""What `search` finds on a trained model beside uniform choices, and whether sensitivities rank.

    python -m benchmarks.search --model=MODEL.keras --data=cifar10 --data_dir=FOLDER
    python -m benchmarks.search --model=MODEL.keras --data=cifar10 --part=ranking

`front`: files at several budgets of bytes, beside int8, 4 bits and half the width everywhere, all
trained alike: the same samples, epochs, rate and teacher. Accuracy is that of the file on the test
set, which no step saw. `ranking`: Spearman's rank correlation between the divergence of one option
of one layer and the accuracy that the file loses when that layer alone is compressed, untrained.
Rows go to `search_front.csv` and `search_ranking.csv` in `--output`; started again, it skips what
is there.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from recipes.results import Results
from tfcompress.tools import datasets

_MODEL = flags.DEFINE_string("model", None, "A .keras file, trained and compiled.", required=True)
_DATA = flags.DEFINE_string("data", "cifar10", "Name of the data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Its folder; default $TFCOMPRESS_DATA.")
_PART = flags.DEFINE_enum("part", "front", ["front", "ranking"], "Which rows.")
_BUDGETS = flags.DEFINE_list("budgets", ["30000", "40000", "45000", "55000", "70000"], "Bytes.")
_GZIP = flags.DEFINE_bool("gzip", True, "Whether the budgets are bytes under gzip.")
_UNIFORM = flags.DEFINE_list("uniform", ["int8", "int4", "width_0.5"], "Controls to run.")
_SAMPLES = flags.DEFINE_integer("samples", 0, "Training samples; all by default.")
_TEST = flags.DEFINE_integer("test", 10000, "Test samples.")
_EPOCHS = flags.DEFINE_integer("epochs", 4, "Of training.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of training.")
_OUTPUT = flags.DEFINE_string("output", "recipes/results", "Folder of the rows.")

#: Compression of everything alike.
UNIFORM: dict[str, list[dict[str, Any]]] = {
    "int8": [{"quantize": {"default": "int8"}}],
    "int4": [{"quantize": {"default": "int4"}}],
    "width_0.5": [{"shrink": {"target_macs": 0.5}}, {"quantize": {"default": "int8"}}],
}
RANKED = ("int4", "int2", "sparsity=0.5", "sparsity=0.8", "channels=0.75", "channels=0.5")


def read() -> tuple[tuple, tuple, tuple]:
    """Training, validation (the last tenth, at most 5000) and test data."""
    (x, y), (x_test, y_test) = datasets.load(_DATA.value, _DATA_DIR.value)
    held = min(5000, len(x) // 10)
    count = min(_SAMPLES.value or len(x), len(x) - held)
    test = x_test[: _TEST.value], y_test[: _TEST.value]
    return (x[:count], y[:count]), (x[-held:], y[-held:]), test


def measured(model: keras.Model, original: keras.Model, test: tuple) -> dict[str, Any]:
    """Bytes, multiply-accumulates and accuracy of the file of a quantized model."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "model.tflite"
        report = tfc.export_tflite(model, file, verify_samples=32, allow_float=True)
        accuracy = tfc.evaluate_file(file, original, test)
    return {
        "bytes": report.num_bytes,
        "gzip": report.gzip_bytes,
        "macs": tfc.count_macs(model),
        "accuracy": f"{accuracy:.4f}",
    }


def front(model: keras.Model, parts: tuple[tuple, tuple, tuple], output: pathlib.Path) -> None:
    """Rows of files at budgets, and of the controls."""
    train, validation, test = parts
    results = Results(output / "search_front.csv", ("what", "epochs", "samples", "seed"))
    common = {"epochs": _EPOCHS.value, "samples": len(train[0])}
    for seed in _SEEDS.value:
        for name in _UNIFORM.value:
            if not results.has(what=name, seed=seed, **common):
                start = time.monotonic()
                settings = {"epochs": _EPOCHS.value, "seed": int(seed)}
                stages = [*UNIFORM[name], {"distill": {}}, {"train": settings}]
                small = tfc.Recipe(stages).run(model, train, verbose=0)
                _add(results, name, seed, common, measured(small, model, test), start)
        for budget in _BUDGETS.value:
            name = f"search_{budget}{'_gzip' if _GZIP.value else ''}"
            if not results.has(what=name, seed=seed, **common):
                start = time.monotonic()
                found = tfc.search(
                    model,
                    train,
                    validation,
                    budget=tfc.Bytes(float(budget), gzip=_GZIP.value),
                    epochs=_EPOCHS.value,
                    trials=1,
                    seed=int(seed),
                )
                print(found, flush=True)
                _add(results, name, seed, common, measured(found.model, model, test), start)
    if not results.has(what="float", seed="", **common):
        accuracy = tfc.evaluate_file(model, model, test)
        row = {"bytes": "", "gzip": "", "macs": tfc.count_macs(model)}
        _add(results, "float", "", common, {**row, "accuracy": f"{accuracy:.4f}"}, 0.0)


def _add(
    results: Results, what: str, seed: str, common: Mapping, row: Mapping, start: float
) -> None:
    seconds = f"{time.monotonic() - start:.0f}" if start else ""
    results.add(what=what, seed=seed, **common, **row, seconds=seconds)
    print(what, seed, dict(row), seconds, flush=True)


def ranking(model: keras.Model, parts: tuple[tuple, tuple, tuple], output: pathlib.Path) -> None:
    """Rows of one layer compressed alone: divergence, and the accuracy that its file loses."""
    from scipy.stats import spearmanr

    (x, _), _, test = parts
    few = x[:256].astype(np.float32)
    table = tfc.sensitivity(model, few, options=RANKED, verbose=0)
    results = Results(output / "search_ranking.csv", ("model", "target", "option"))
    baseline = tfc.evaluate_file(model, model, test)
    with tfc.shared_converter():
        for row in table:
            key = {"model": model.name, "target": row.target, "option": row.option}
            if results.has(**key):
                continue
            kind, _, value = row.option.partition("=")
            stages: list[dict[str, Any]] = [{"quantize": {"default": "int8"}}]
            if kind == "channels":
                stages.insert(0, {"shrink": {"channels": {row.target: float(value)}}})
            elif kind == "sparsity":
                stages.insert(0, {"prune": {"sparsity": {row.target: float(value)}}})
            else:
                preset = "int4" if kind == "int4" else "w2a8"
                stages = [{"quantize": {"default": "int8", "layers": {row.target: preset}}}]
            small = tfc.Recipe(stages).run(model, (few, np.zeros(len(few), int)), verbose=0)
            found = measured(small, model, test)
            lost = baseline - float(found["accuracy"])
            results.add(**key, divergence=f"{row.divergence:.6g}", lost=f"{lost:.4f}")
            print(key, row.divergence, lost, flush=True)
    rows = results.rows
    rank = spearmanr([float(r["divergence"]) for r in rows], [float(r["lost"]) for r in rows])
    print(f"Spearman's rank correlation of {len(rows)} rows: {rank.statistic:.3f}")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    model, output = keras.models.load_model(_MODEL.value), pathlib.Path(_OUTPUT.value)
    {"front": front, "ranking": ranking}[_PART.value](model, read(), output)


if __name__ == "__main__":
    app.run(main)
