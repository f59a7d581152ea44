"""The same networks through tfcompress and its peers, each in an environment of its own.

    python -m benchmarks.peers --environments=FOLDER --data_dir=~/data --resnet8=resnet8.keras
    python -m benchmarks.peers --tasks=mnist --only=tfmot_training,stock_int8

FOLDER gets a virtual environment per tool, where it has none (about 4 GB). Every method starts from
the same float weights: methods that train have `--epochs` epochs of Adam with a cosine decay on the
same batches; the others quantize the float model after just these epochs, on the same 512 samples.
All networks take scaled pixels, for tfmot refuses a `Rescaling`.

| method             | what it is                                                             |
|--------------------|------------------------------------------------------------------------|
| `float`            | the float model, by TensorFlow's converter                             |
| `ours_training`    | `tfc.quantize`, trained                                                |
| `ours_calibration` | `tfc.quantize` alone                                                   |
| `tfmot_training`   | `tfmot.quantization.keras.quantize_model`, trained                     |
| `stock_int8`       | TensorFlow's converter, full int8 by calibration                       |
| `stock_dynamic`    | TensorFlow's converter, dynamic range                                  |
| `ai_edge_static`   | ai-edge-quantizer, `static_wi8_ai8`                                    |
| `ai_edge_dynamic`  | ai-edge-quantizer, `dynamic_wi8_afp32`                                 |

With `--emulation=FOLDER` (see `benchmarks.arm`) instructions per inference are counted on emulated
ARM CPUs. Rows go to `peers.csv` in `--output`; started again, the benchmark skips what is there.
`python -m recipes.tables` writes the tables of `docs/peers.md`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from benchmarks.emulation.emulator import Emulator
from benchmarks.latency import cpu_name
from benchmarks.peers_parts.environments import python_of
from benchmarks.peers_parts.job import Job
from benchmarks.peers_parts.measure import figures
from benchmarks.peers_parts.training import save_arrays
from recipes.origin import commit
from recipes.results import Results
from tfcompress.tools import datasets

ROOT = pathlib.Path(__file__).parents[1]

#: Method → environment and module that do it.
METHODS = {
    "float": ("tensorflow", "stock"),
    "ours_training": ("tfcompress", "ours"),
    "ours_calibration": ("tfcompress", "ours"),
    "tfmot_training": ("tfmot", "tfmot"),
    "stock_int8": ("tensorflow", "stock"),
    "stock_dynamic": ("tensorflow", "stock"),
    "ai_edge_static": ("ai-edge-quantizer", "ai_edge"),
    "ai_edge_dynamic": ("ai-edge-quantizer", "ai_edge"),
}
#: Task → epochs, learning rate.
TASKS = {"mnist": (1, 1e-3), "cifar10": (1, 3e-4)}
CPUS = ("cortex-a53", "cortex-a76")

_TASKS = flags.DEFINE_list("tasks", list(TASKS), "Tasks.")
_ONLY = flags.DEFINE_list("only", list(METHODS), "Methods.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds, one run each.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Epochs; by default the task's.", lower_bound=1)
_DATA = flags.DEFINE_string("data_dir", None, "Folder of the data sets; default $TFCOMPRESS_DATA.")
_RESNET8 = flags.DEFINE_string("resnet8", None, "A trained ResNet-8 for CIFAR-10.")
_ENVIRONMENTS = flags.DEFINE_string("environments", "build/peers", "Folder of the environments.")
_EMULATION = flags.DEFINE_string("emulation", None, "The set-up that counts instructions.")
_WORK = flags.DEFINE_string(
    "work", str(pathlib.Path(tempfile.gettempdir(), "tfcompress_peers")), "Folder of the files."
)
_OUTPUT = flags.DEFINE_string("output", str(ROOT / "recipes" / "results"), "Folder of the rows.")
# --models, --architectures, --threads and --runs come with the benchmark of latency.


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    for given, known in ((_TASKS.value, TASKS), (_ONLY.value, METHODS)):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise app.UsageError(f"Expected names among {', '.join(known)}. Received: {unknown}")
    results = Results(pathlib.Path(_OUTPUT.value) / "peers.csv", ("task", "method", "seed"))
    emulator = Emulator(_EMULATION.value) if _EMULATION.value else None
    for seed in map(int, _SEEDS.value):
        for task in _TASKS.value:
            for method in _ONLY.value:
                if results.has(task=task, method=method, seed=seed):
                    continue
                row = _measure(task, method, seed, emulator)
                results.add(task=task, method=method, seed=seed, **row)
                print(task, method, seed, row, flush=True)


def _measure(task: str, method: str, seed: int, emulator: Emulator | None) -> dict:
    measured = commit()
    epochs, rate = TASKS[task]
    if _EPOCHS.value is not None:
        epochs = _EPOCHS.value
    folder = pathlib.Path(_WORK.value, f"{task}_{epochs}_{seed}")
    job = Job(task, method, seed, epochs, rate, str(folder))
    _prepare(job)
    if method != "float":
        _run(job)
    # Training ends in a model of its own; the others quantize the float one.
    trained = job if job.outputs.is_file() else dataclasses.replace(job, method="control")
    row = figures(job, trained.outputs, emulator, CPUS, flags.FLAGS.runs)
    command = f"python -m benchmarks.peers --tasks={task} --only={method} --seeds={seed}"
    return {"epochs": epochs, **row, "cpu": cpu_name(), "commit": measured, "command": command}


def _prepare(job: Job) -> None:
    """Data, float weights and the float file of a task, where they are missing."""
    folder = pathlib.Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data.npz").is_file():
        (x, y), (x_test, y_test) = datasets.load(job.task, _DATA.value)
        arrays = {"x": x.astype(np.uint8), "y": y, "x_test": x_test.astype(np.uint8)}
        np.savez(folder / "data.npz", **arrays, y_test=y_test)
    start = pathlib.Path(job.weights("start"))
    if not start.is_file() and job.task == "cifar10":
        import keras

        if not _RESNET8.value:
            raise app.UsageError("Expected --resnet8=FILE.keras, a trained ResNet-8 to start from.")
        model = keras.models.load_model(_RESNET8.value, compile=False)
        save_arrays(model, job.task, str(start))
    if not start.is_file():
        _run(dataclasses.replace(job, method="start"))
    if not pathlib.Path(job.weights("control")).is_file():
        _run(dataclasses.replace(job, method="control"))
    if not (folder / "float.tflite").is_file():
        _run(dataclasses.replace(job, method="float"))


def _run(job: Job) -> None:
    """Runs a method in the environment of its tool."""
    environment, module = METHODS.get(job.method, ("tfcompress", "ours"))
    python = python_of(environment, pathlib.Path(_ENVIRONMENTS.value))
    path = pathlib.Path(job.folder, f"{job.method}.job.json")
    path.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    print(f"{job.task}: {job.method}, in {environment}", flush=True)
    command = [python, "-m", f"benchmarks.peers_parts.{module}", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], file=sys.stderr)
        raise RuntimeError(f"{job.method} ended with {done.returncode}.")


if __name__ == "__main__":
    app.run(main)
