"""Memory of exports: flat over many of them, and a small multiple of a large kernel.

    python -m benchmarks.memory --exports=100
    python -m benchmarks.memory --kernel_mb=64

The first prints the memory of the process after every tenth export of one small model, and what it
has gained over the second half of them. The second prints the peaks of `quantize` and
`export_tflite` on one dense layer, in multiples of its kernel, beyond what the process had before,
and what is kept afterwards. Rows are appended to a table.
"""

from __future__ import annotations

import csv
import gc
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from recipes import origin


def memory() -> float:
    """Megabytes of this process that lie in memory (Linux)."""
    pages = pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096 / 1e6


def peak(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Runs a function: `(what it returns, MB at most beyond the start, MB kept)`."""
    gc.collect()
    start = highest = memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.01):
            highest = max(highest, memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = run()
    finally:
        done.set()
        watcher.join()
    gc.collect()
    return result, highest - start, memory() - start


def many_exports(count: int) -> list[float]:
    """Memory after each of `count` exports of a small model."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    data = np.random.default_rng(0).uniform(-1, 1, (32, 8, 8, 3)).astype(np.float32)
    quantized = tfc.quantize(model, calibration_data=data)
    found = []
    with tempfile.TemporaryDirectory() as folder, tfc.shared_converter():
        for number in range(count):
            start = time.perf_counter()
            tfc.export_tflite(quantized, pathlib.Path(folder) / "model.tflite")
            gc.collect()
            found.append(memory())
            if number % 10 == 9:
                seconds = time.perf_counter() - start
                print(f"after {number + 1}: {found[-1]:.0f} MB ({seconds:.1f} s)", flush=True)
    return found


def large_kernel(megabytes: float) -> dict[str, float]:
    """What `quantize` and `export_tflite` take for a dense layer of so many megabytes."""
    size = int((megabytes * 2**20 / 4) ** 0.5)
    inputs = keras.Input((size,))
    model = keras.Model(inputs, keras.layers.Dense(size)(inputs))
    data = np.random.default_rng(0).uniform(-1, 1, (8, size)).astype(np.float32)
    kernel = size * size * 4 / 1e6
    quantized, highest, kept = peak(lambda: tfc.quantize(model, calibration_data=data))
    found = {"quantize, peak": highest / kernel, "quantize, kept": kept / kernel}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        _, highest, kept = peak(lambda: tfc.export_tflite(quantized, path))
    return {**found, "export, peak": highest / kernel, "export, kept": kept / kernel}


def _write(what: str, value: float, unit: str) -> None:
    print(f"{what}: {value:.1f} {unit}", flush=True)
    path = pathlib.Path(flags.FLAGS.csv)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(("commit", "what", "value", "unit"))
        writer.writerow((origin.commit(), what, f"{value:.1f}", unit))


def _main(arguments: list[str]) -> None:
    del arguments
    if flags.FLAGS.exports:
        found = many_exports(flags.FLAGS.exports)
        growth = found[-1] - found[len(found) // 2]
        _write(f"the second half of {len(found)} exports", growth, "MB")
    if flags.FLAGS.kernel_mb:
        megabytes = flags.FLAGS.kernel_mb
        for what, value in large_kernel(megabytes).items():
            _write(f"{what} ({megabytes:g} MB)", value, "kernels")


if __name__ == "__main__":
    flags.DEFINE_integer("exports", 0, "How many exports of a small model.", 0)
    flags.DEFINE_string("csv", "recipes/results/memory.csv", "Table of results.")
    flags.DEFINE_float("kernel_mb", 0.0, "Megabytes of the kernel of a large layer.", 0.0)
    app.run(_main)
