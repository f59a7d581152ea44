"""Small nets of many kinds, trained, quantized, trained in int8 and exported: a row each.

    python -m benchmarks.nets --data_dir=FOLDER                          # seed 0
    python -m benchmarks.nets --data_dir=FOLDER --only=lstm,gru,streaming --seeds=0,1,2
    python -m benchmarks.nets --nomeasure                                # the page alone

`benchmarks/tasks/` has the nets, their data and their measures. A row has the measure of the float
model, of the float model trained as much longer, of the int8 file by calibration and of the int8
file by training, both run by LiteRT; how the trained file agrees with the Keras model; float
tensors, partitions, bytes. Rows go to `nets.csv` in `--output`; started again, it skips what is
there. Then `docs/nets.md` is written. A net and seed take 15 to 90 seconds of a CPU.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
from collections.abc import Sequence

import keras
from absl import app, flags

import tfcompress as tfc
from benchmarks.tasks import table
from benchmarks.tasks.catalog import TASKS
from benchmarks.tasks.run import measure
from recipes.origin import commit
from recipes.results import Results

_ONLY = flags.DEFINE_list("only", [], "Names of nets; all by default.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds, one run each.")
_DATA = flags.DEFINE_string("data_dir", None, "Folder of the data sets; default $TFCOMPRESS_DATA.")
_OUTPUT = flags.DEFINE_string("output", str(table.RESULTS), "Folder of the rows.")
_MEASURE = flags.DEFINE_bool("measure", True, "Whether to run what is missing.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    unknown = set(_ONLY.value) - set(TASKS)
    if unknown:
        raise app.UsageError(f"Expected names among {', '.join(TASKS)}. Received: {unknown}")
    results = Results(pathlib.Path(_OUTPUT.value) / "nets.csv", ("net", "seed"))
    given = [a for a in sys.argv[1:] if not a.startswith(("--data_dir", "--output"))]
    command = " ".join(["python -m benchmarks.nets --data_dir=FOLDER", *given])
    origin = {"commit": commit(), "command": command}
    with tfc.shared_converter(), tempfile.TemporaryDirectory() as folder:
        for seed in _SEEDS.value if _MEASURE.value else ():
            for name in _ONLY.value or TASKS:
                if results.has(net=name, seed=seed):
                    continue
                found = measure(TASKS[name], int(seed), _DATA.value, pathlib.Path(folder))
                results.add(net=name, seed=seed, **found, **origin)
                print(name, seed, found, flush=True)
                keras.backend.clear_session()
    text = table.page(pathlib.Path(_OUTPUT.value))
    if _OUTPUT.value == str(table.RESULTS):
        table.PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    app.run(main)
