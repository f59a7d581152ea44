"""How long `plan`, `quantize`, the first train step and an export take, beside plain Keras.

    python -m benchmarks.turnaround            # four networks of keras.applications
    python -m benchmarks.turnaround --print    # the table of what was measured before

| quantity    | what it is                                                                       |
|-------------|----------------------------------------------------------------------------------|
| `plan`      | `tfc.plan`                                                                       |
| `quantize`  | `tfc.quantize` with 32 samples of calibration data                               |
| `step`      | `compile` and `fit` on one batch of 8, of the float and of the quantized model   |
| `converter` | `TFLiteConverter.from_keras_model(float model).convert()`, in this process       |
| `start`     | a process that imports TensorFlow, as the worker of an export does, and ends     |
| `export`    | `tfc.export_tflite`, strict; `unverified` with `verify_samples=0`                |

Every group of quantities is measured once, in a fresh process in which TensorFlow is imported and
the model is built before the clock starts, so no trace is warm. An export starts a worker process
and waits for it; the table gives its ratio to the converter with and without the time of such a
start on the converter's side. CPU seconds are of all threads and of child processes: they hardly
depend on what else the machine does, elapsed seconds do.

The networks have 32 pixels, 10 classes, random weights, and batch-norm statistics of their own
activations. Each measurement is appended to the table at once; what it has is not measured again.
"""

from __future__ import annotations

import collections
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import app, flags

from recipes import origin

_MODELS = flags.DEFINE_list(
    "models", ["MobileNetV2", "MobileNetV3Small", "ResNet50", "EfficientNetB0"], "Networks."
)
_GROUPS = flags.DEFINE_list("groups", None, "Groups of quantities; all by default.")
_CSV = flags.DEFINE_string("csv", "recipes/results/turnaround.csv", "The table.")
_COMMIT = flags.DEFINE_string("commit", None, "Name of the measured code; by default git's.")
_PRINT = flags.DEFINE_bool("print", False, "Only print what was measured.")
_CHILD = flags.DEFINE_string("child", None, "Internal: measure `case:group` and print JSON.")

_COLUMNS = ("commit", "case", "quantity", "seconds", "cpu_seconds")
_SIZE, _BATCH, _CALIBRATION = 32, 8, 32
#: What plain Keras and TensorFlow take: measured once for all commits.
_PLAIN = ("float step", "converter", "start")
#: Group → the quantities that one process measures.
_QUANTITIES = {
    "float": ("float step",),
    "int8": ("plan", "quantize", "step"),
    "converter": ("converter", "start"),
    "unverified": ("unverified",),
    "export": ("export",),
}


class Clock:
    """Elapsed and CPU seconds of blocks, child processes that have ended included."""

    def __init__(self) -> None:
        self.times: dict[str, tuple[float, float]] = {}

    def __call__(self, quantity: str, function: Callable) -> object:
        start = time.perf_counter(), sum(os.times()[:4])
        result = function()
        end = time.perf_counter(), sum(os.times()[:4])
        self.times[quantity] = end[0] - start[0], end[1] - start[1]
        return result


def build(case: str):
    """The model of a case, with the batch-norm statistics of its own activations."""
    import keras

    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, case)
    model = make(input_shape=(_SIZE, _SIZE, 3), weights=None, classes=10)
    rng = np.random.default_rng(1)
    norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(rng.normal(0, 0.1, norm.beta.shape))
    model(images(model, 64), training=True)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    return model


def images(model, count: int) -> np.ndarray:
    """Random pixels."""
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(2).uniform(0, 255, shape).astype(np.float32)


def first_step(model) -> None:
    """Compiles a model and trains it on one batch."""
    import keras

    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.arange(_BATCH) % 10
    model.fit(images(model, _BATCH), labels, batch_size=_BATCH, verbose=0)


def measure(case: str, group: str) -> dict[str, tuple[float, float]]:
    """Quantity → elapsed and CPU seconds."""
    import tensorflow as tf

    import tfcompress as tfc

    clock, model, wanted = Clock(), build(case), _QUANTITIES[group]
    if "float step" in wanted:
        clock("float step", lambda: first_step(model))
        return clock.times
    if "converter" in wanted:
        clock("converter", lambda: tf.lite.TFLiteConverter.from_keras_model(model).convert())
        command = [sys.executable, "-c", "import tensorflow as tf; tf.lite.TFLiteConverter"]
        clock("start", lambda: subprocess.run(command, check=True, capture_output=True))
        return clock.times
    if "plan" in wanted:
        clock("plan", lambda: tfc.plan(model))
    data = images(model, _CALIBRATION)
    quantized = clock("quantize", lambda: tfc.quantize(model, calibration_data=data))
    if "step" in wanted:
        clock("step", lambda: first_step(quantized))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        if "unverified" in wanted:
            clock("unverified", lambda: tfc.export_tflite(quantized, path, verify_samples=0))
        if "export" in wanted:
            clock("export", lambda: tfc.export_tflite(quantized, path))
    return {name: clock.times[name] for name in wanted}


def run_child(case: str, group: str) -> dict[str, list[float]]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.turnaround", f"--child={case}:{group}"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case} {group} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def read(path: pathlib.Path) -> dict[tuple[str, str, str], tuple[float, float]]:
    """(commit, case, quantity) → elapsed and CPU seconds."""
    if not path.exists():
        return {}
    with path.open() as file:
        return {
            (row["commit"], row["case"], row["quantity"]): (
                float(row["seconds"]),
                float(row["cpu_seconds"]),
            )
            for row in csv.DictReader(file)
        }


def append(path: pathlib.Path, commit: str, case: str, times: dict[str, list[float]]) -> None:
    """Adds measurements to the table."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(_COLUMNS)
        for quantity, (elapsed, cpu) in times.items():
            writer.writerow((commit, case, quantity, f"{elapsed:.2f}", f"{cpu:.2f}"))


def ratio_rows(found: dict) -> Iterator[tuple[str, ...]]:
    """One row for each commit and network: CPU seconds, and ratios of CPU (of elapsed) seconds."""
    for commit, case in dict.fromkeys(key[:2] for key in found):
        own = collections.defaultdict(lambda: np.array((np.nan, np.nan)))
        for (other, network, quantity), times in found.items():
            if network == case and (other == commit or quantity in _PLAIN):
                own[quantity] = np.array(times)
        converter = own["converter"]
        yield (
            commit,
            case,
            f"{own['plan'][1]:.2f}",
            f"{own['quantize'][1]:.1f}",
            _ratio(own["step"], own["float step"]),
            _ratio(own["quantize"] + own["step"], own["float step"]),
            _ratio(own["unverified"], converter),
            _ratio(own["export"], converter),
            _ratio(own["export"], converter + own["start"]),
        )


def _ratio(value: np.ndarray, to: np.ndarray) -> str:
    elapsed, cpu = value / to
    return f"{cpu:.2f} ({elapsed:.2f})"


def print_tables(found: dict) -> None:
    """Prints what was measured."""
    from tfcompress.model import render_table

    rows = list(ratio_rows(found))
    if rows:
        columns = ("commit", "network", "plan", "quantize", "step / float")
        columns += ("quantize + step", "unverified / converter", "export / converter")
        columns += ("export / (converter + start)",)
        title = "CPU seconds of plan and quantize; ratios of CPU seconds (of elapsed seconds)"
        print(render_table(title, columns, rows), flush=True)


def _is_known(found: dict, commit: str, case: str, quantity: str) -> bool:
    commits = {c for c, m, q in found if (m, q) == (case, quantity)}
    return commit in commits or (quantity in _PLAIN and bool(commits))


def main(argv: list[str]) -> None:
    del argv
    if _CHILD.value:
        case, _, group = _CHILD.value.partition(":")
        print(json.dumps(measure(case, group)))
        return
    path, commit = pathlib.Path(_CSV.value), _COMMIT.value or origin.commit()
    for case in () if _PRINT.value else _MODELS.value:
        for group, quantities in _QUANTITIES.items():
            if all(_is_known(read(path), commit, case, quantity) for quantity in quantities):
                continue
            if _GROUPS.value and group not in _GROUPS.value:
                continue
            times = run_child(case, group)
            append(path, commit, case, times)
            shown = ", ".join(f"{q} {t:.1f} s ({cpu:.1f} CPU)" for q, (t, cpu) in times.items())
            print(f"{commit} {case}: {shown}", flush=True)
    print_tables(read(path))


if __name__ == "__main__":
    app.run(main)
