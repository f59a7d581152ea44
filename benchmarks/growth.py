"""CPU time over the depth of a model: plan, quantize, shrink, lower and export.

    python -m benchmarks.growth                                    # 50, 100, 200 and 400 layers
    python -m benchmarks.growth --print                            # the table of what was measured
    python -m benchmarks.growth --profile=quantize --layers=200    # what takes the time

A chain is of convolutions, batch norms and ReLUs; a residual net has an addition of what it skips
before each ReLU. Every net has a process of its own, in which a small one is measured first, so
that what TensorFlow does once is left out. Stages are timed in CPU seconds:

| stage       | what it is                                                                       |
|-------------|----------------------------------------------------------------------------------|
| `plan`      | `tfc.plan`                                                                       |
| `quantize`  | `tfc.quantize`, with calibration on 16 images                                    |
| `shrink`    | `tfc.shrink` to half of the MACs                                                 |
| `lower`     | the quantized model as a TensorFlow function, traced                             |
| `export`    | `tfc.export_tflite` without its worker process, but with lowering                |
| `converter` | the worker process: TensorFlow's converter, beyond its start                     |

Time grows as a power of the number of layers. The exponent is that of the best fit, and, beside it,
that of the last doubling. Rows are appended to a table; what it has is not measured again.
"""

from __future__ import annotations

import cProfile
import csv
import json
import os
import pathlib
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

import tfcompress as tfc
from recipes import origin
from tfcompress.export.lowering.lower import lower

STAGES = ("plan", "quantize", "shrink", "lower", "export", "converter")
_COLUMNS = ("commit", "net", "layers", *STAGES)
_NETS = ("chain", "residual")


def build(net: str, depth: int) -> keras.Model:
    """A net of about `depth` layers."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    count = 1
    while count < depth - 2:
        shortcut = x
        x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        count += 3
        if net == "residual":
            x = layers.Add()([x, shortcut])
            count += 1
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def stages(net: str, depth: int, folder: pathlib.Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Stage → what it runs, in order; each may need that the ones before have run."""
    model = build(net, depth)
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype("float32")
    made: dict[str, keras.Model] = {}

    def quantize() -> None:
        made["quantized"] = tfc.quantize(model, calibration_data=images)

    def trace() -> None:
        lowered = lower(made["quantized"], ["output"])
        tf.function(lowered.function, autograph=False).get_concrete_function(*lowered.specs)

    def export() -> None:
        # What a deep net of random weights computes is of no interest here.
        tfc.export_tflite(
            made["quantized"], folder / "model.tflite", verify_samples=16, min_agreement=0.0
        )

    yield "plan", lambda: tfc.plan(model)
    yield "quantize", quantize
    yield "shrink", lambda: tfc.shrink(model, target_macs=0.5)
    yield "lower", trace
    yield "export", export


def measure(net: str, depth: int, folder: pathlib.Path) -> dict[str, float]:
    """CPU seconds of every stage."""
    found = {}
    for stage, run in stages(net, depth, folder):
        child, start = _children_seconds(), time.process_time()
        run()
        found[stage] = time.process_time() - start
        if stage == "export":
            found["converter"] = _children_seconds() - child
    return found


def _children_seconds() -> float:
    """CPU seconds of the running processes that this one has started (Linux)."""
    ticks = 0
    for task in pathlib.Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text(encoding="ascii").split():
            found = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
            # The name, in parentheses, may hold spaces.
            ticks += sum(int(number) for number in found.rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def profile(net: str, depth: int, stage: str, folder: pathlib.Path) -> None:
    """Prints the functions that take the time of a stage."""
    for name, run in stages(net, depth, folder):
        if name != stage:
            run()
            continue
        profiler = cProfile.Profile()
        profiler.runcall(run)
        found = pstats.Stats(profiler)
        found.sort_stats("tottime").print_stats(25)
        found.sort_stats("cumtime").print_stats("tfcompress", 50)
        return


def _child(net: str, depth: int, stage: str | None) -> None:
    with tempfile.TemporaryDirectory() as name, tfc.shared_converter():
        folder = pathlib.Path(name)
        measure(net, 8, folder)
        if stage is None:
            print(json.dumps(measure(net, depth, folder)))
        else:
            profile(net, depth, stage, folder)


def _run_child(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.growth", *arguments]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def read(path: pathlib.Path) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
    """(commit, net) → layers → stage → seconds."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                seconds = {stage: float(row[stage]) for stage in STAGES}
                found.setdefault((row["commit"], row["net"]), {})[int(row["layers"])] = seconds
    return found


def exponents(seconds: dict[int, float]) -> tuple[float, float]:
    """Layers → seconds: the exponent of the best fit, and that of the two largest."""
    depths, times = np.log(np.array(sorted(seconds.items()))).T
    last = (times[-1] - times[-2]) / (depths[-1] - depths[-2])
    return float(np.polyfit(depths, times, 1)[0]), float(last)


def table(found: dict[tuple[str, str], dict[int, dict[str, float]]]) -> str:
    """The seconds and exponents as Markdown."""
    depths = sorted({depth for rows in found.values() for depth in rows})
    heads = ("commit", "net", "stage", *(f"{d} layers" for d in depths), "exponent", "of the last")
    lines = [f"| {' | '.join(heads)} |", f"|---|---|---|{'---:|' * (len(depths) + 2)}"]
    for (commit, net), rows in found.items():
        for stage in STAGES:
            seconds = {depth: row[stage] for depth, row in rows.items()}
            shown = [f"{seconds[d]:.2f}" if d in seconds else "" for d in depths]
            both = [f"{v:.2f}" for v in exponents(seconds)] if len(seconds) > 1 else ["", ""]
            lines.append(f"| {' | '.join((commit, net, stage, *shown, *both))} |")
    return "\n".join(lines)


def _main(arguments: list[str]) -> None:
    del arguments
    path = pathlib.Path(flags.FLAGS.csv)
    if flags.FLAGS.child:
        net, _, depth = flags.FLAGS.child.partition("-")
        _child(net, int(depth), flags.FLAGS.profile)
        return
    cases = [(net, int(depth)) for net in flags.FLAGS.nets for depth in flags.FLAGS.layers]
    if flags.FLAGS.profile:
        for net, depth in cases:
            print(_run_child(f"--child={net}-{depth}", f"--profile={flags.FLAGS.profile}"))
        return
    commit = flags.FLAGS.commit or origin.commit()
    for net, depth in () if flags.FLAGS.print else cases:
        if depth in read(path).get((commit, net), {}):
            continue
        found = json.loads(_run_child(f"--child={net}-{depth}").strip().splitlines()[-1])
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(_COLUMNS)
            writer.writerow((commit, net, depth, *(f"{found[stage]:.3f}" for stage in STAGES)))
        print(net, depth, {stage: round(value, 2) for stage, value in found.items()}, flush=True)
    print(table(read(path)))


if __name__ == "__main__":
    flags.DEFINE_list("layers", ["50", "100", "200", "400"], "Numbers of layers, ascending.")
    flags.DEFINE_list("nets", list(_NETS), "Which nets.")
    flags.DEFINE_enum("profile", None, STAGES[:-1], "Profile this stage instead.")
    flags.DEFINE_bool("print", False, "Print the table and measure nothing.")
    flags.DEFINE_string("commit", None, "Name of the measured code; by default git's.")
    flags.DEFINE_string("csv", "recipes/results/growth.csv", "Table of seconds.")
    flags.DEFINE_string("child", None, "Internal: measure one net and print JSON.")
    app.run(_main)
