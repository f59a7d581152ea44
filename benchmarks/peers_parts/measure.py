"""What a file computes and costs, measured alike for every tool."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.emulation.emulator import Emulator
from benchmarks.peers_parts.job import Job, scaled
from tfcompress.export import Runner, compare_latency, gzip_size

# Steps that a float output is compared in: as many as int8 has, over its span.
_STEPS = 255


def figures(
    job: Job, trained: pathlib.Path, emulator: Emulator | None, cpus: Sequence[str], runs: int
) -> dict[str, Any]:
    """The columns of a row.

    Args:
        job: The method that has run.
        trained: Logits of the model that the file is made of.
        emulator: Counts instructions; `None` leaves these columns empty.
        cpus: Emulated CPUs to count on.
        runs: Rounds of the latency measurement.
    """
    _, (x, y) = job.data()
    expected = np.load(trained)
    runner = Runner(job.path)
    (input_name,), (output_name,) = runner.input_names, runner.output_names
    outputs = runner.predict({input_name: scaled(job.task, x)})[output_name]
    apart = steps_apart(expected, outputs, runner.outputs[output_name])
    files = {"float": pathlib.Path(job.folder, "float.tflite"), "this": job.path}
    times = compare_latency(files, num_threads=1, runs=runs)
    found = json.loads(job.notes.read_text(encoding="utf-8"))
    row = {
        "versions": found["versions"],
        "model_accuracy": f"{100 * np.mean(expected.argmax(-1) == y):.2f}",
        "file_accuracy": f"{100 * np.mean(outputs.argmax(-1) == y):.2f}",
        "same_top1": f"{100 * np.mean(outputs.argmax(-1) == expected.argmax(-1)):.2f}",
        "equal": f"{100 * np.mean(apart == 0):.2f}",
        "largest": f"{apart.max():.0f}",
        "num_bytes": job.path.stat().st_size,
        "gzip_bytes": gzip_size(job.path.read_bytes()),
        "input": np.dtype(runner.inputs[input_name].dtype).name,
        "step_ratio": "" if found["step_ratio"] is None else f"{found['step_ratio']:.2f}",
        "latency_ms": f"{times.medians['this']:.4f}",
        "latency_ratio": f"{times.ratios['this'].median:.3f}",
    }
    for cpu in cpus:
        counted = "" if emulator is None else str(emulator.instructions(cpu, job.path))
        row[f"instructions_{cpu}"] = counted
    return row


def steps_apart(expected: np.ndarray, outputs: np.ndarray, info: Any) -> np.ndarray:
    """How many steps an output is off, for an int8 output in its own steps."""
    if not info.is_quantized:
        step = float(np.ptp(expected)) / _STEPS
        return np.floor(np.abs(expected - outputs) / step + 0.5)
    codes = np.rint(expected / info.scale) + info.zero_point
    given = np.rint(outputs / info.scale) + info.zero_point
    return np.abs(np.clip(codes, -128, 127) - given)
