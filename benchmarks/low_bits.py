"""Low bits: accuracy, files, gradients and the cost of a step, a row at a time.

    python -m benchmarks.low_bits --part=accuracy --data_dir=~/data --resnet8=resnet8.keras
    python -m benchmarks.low_bits --part=accuracy --only="W2A8 LSQ,W2A8 DoReFa" --seeds=0,1,2

| part        | what its rows show                                                         |
|-------------|----------------------------------------------------------------------------|
| `accuracy`  | ResNet-8 on CIFAR-10, trained on from one float model, by method and bits  |
| `mobilenet` | MobileNetV2-0.35 on CIFAR-10 at 64 pixels, 4 bits: methods against swinging |
| `mnist`     | the dense nets of BNN-PYNQ with weights of 1 and 2 bits                    |
| `files`     | bytes, agreement, accuracy and time of files of 8, 4 and 2 bits            |
| `gradients` | LeNet-5 trained with gradients of 8, 6 and 4 bits                          |
| `steps`     | what a training step costs with each quantizer, beside min-max             |

Rows go to `low_bits.csv` in `--output` with the commit and the command; started again, the
benchmark skips what is there. `--nomeasure` writes the tables of
`docs/low-bits.md` alone. An epoch of `accuracy` takes about two minutes of a core with
`TF_ENABLE_ONEDNN_OPTS=1`, and three without it on AMD's CPUs, where TensorFlow does not turn oneDNN
on by itself.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from collections.abc import Sequence

from absl import app, flags

from benchmarks.low_bits_parts import (
    accuracy,
    files,
    gradients,
    mnist,
    mobilenet,
    page,
    steps,
)
from benchmarks.low_bits_parts.row import COLUMNS, Settings
from recipes.origin import commit
from recipes.results import Results

_KEY = ("part", "row", "seed", "epochs")
#: How TensorFlow was told to use oneDNN, which is part of the command that repeats a row.
_ONEDNN = "".join(
    f"{name}={os.environ[name]} " for name in ("TF_ENABLE_ONEDNN_OPTS",) if name in os.environ
)
RESULTS = pathlib.Path(__file__).parents[1] / "recipes" / "results"
PARTS = {
    "accuracy": accuracy.PART,
    "mobilenet": mobilenet.PART,
    "mnist": mnist.PART,
    "files": files.PART,
    "gradients": gradients.PART,
    "steps": steps.PART,
}

_PART = flags.DEFINE_enum("part", "accuracy", list(PARTS), "Which table.")
_ONLY = flags.DEFINE_list("only", [], "Names of rows; all of the part by default.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds, one run each.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Epochs of training; by default the part's own.")
_DATA = flags.DEFINE_string("data_dir", None, "Folder of the data sets; default $TFCOMPRESS_DATA.")
_MEASURE = flags.DEFINE_bool("measure", True, "Whether to run what is missing.")
_RESNET8 = flags.DEFINE_string("resnet8", None, "A trained ResNet-8 for CIFAR-10.")
_MOBILENET = flags.DEFINE_string(
    "mobilenet", "mobilenet_v2.keras", "The float MobileNetV2: trained where no such file is."
)
_OUTPUT = flags.DEFINE_string("output", str(RESULTS), "Folder of the rows.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    part = PARTS[_PART.value]
    unknown = set(_ONLY.value) - set(part.rows)
    if unknown:
        raise app.UsageError(f"Expected names among {', '.join(part.rows)}. Received: {unknown}")
    results = Results(pathlib.Path(_OUTPUT.value) / "low_bits.csv", _KEY)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            _DATA.value, _RESNET8.value, pathlib.Path(_MOBILENET.value), pathlib.Path(folder)
        )
        for seed in _SEEDS.value if _MEASURE.value else ():
            for name in _ONLY.value or part.rows:
                epochs = part.epochs if _EPOCHS.value is None else _EPOCHS.value
                key = {"part": _PART.value, "row": name, "seed": seed, "epochs": epochs}
                if results.has(**key):
                    continue
                measured, start = commit(), time.process_time()
                found = dict(part.measure(name, int(seed), epochs, settings))
                found.setdefault("cpu_seconds", f"{time.process_time() - start:.0f}")
                figures = {column: found.pop(column, "") for column in COLUMNS}
                if found:
                    raise ValueError(f"Expected figures among {COLUMNS}. Received: {found}.")
                command = (
                    f"{_ONEDNN}python -m benchmarks.low_bits --part={_PART.value} --epochs={epochs}"
                )
                command += f' --only="{name}" --seeds={seed}'
                results.add(**key, **figures, commit=measured, command=command)
                print(key, figures, flush=True)
    if _OUTPUT.value == str(RESULTS):
        page.write(results.rows)


if __name__ == "__main__":
    app.run(main)
