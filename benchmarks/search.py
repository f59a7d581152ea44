"""What `search` finds beside uniform choices, the smallest file for a drop, and what ranks.

    python -m benchmarks.search --net=resnet8 --model=resnet8.keras --data_dir=~/data
    python -m benchmarks.search --net=spotter --model=spotter.keras --part=drop --epochs=8

| part      | what its rows show                                                              |
|-----------|---------------------------------------------------------------------------------|
| `front`   | files within budgets, beside int8, 4 bits and half the width everywhere         |
| `drop`    | the smallest file that loses at most a point of accuracy                        |
| `ranking` | one option of one layer alone: divergence, and accuracy lost by the file        |

Accuracy is that of the file on the test set, which no step saw, in percent. Rows go to `search.csv`
in `--output`, with commit and command, and from there to `docs/search.md`; started again, the
benchmark skips what is there.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Sequence

from absl import app, flags

import tfcompress as tfc
from benchmarks.search_parts import drop, front, nets, page, ranking
from recipes.origin import commit
from recipes.results import Results

RESULTS = pathlib.Path(__file__).parents[1] / "recipes" / "results"
PARTS = {"drop": drop.measure, "ranking": ranking.measure}
#: Columns of a row behind those that name it.
COLUMNS = (
    *("bytes", "gzip", "macs", "accuracy", "drop", "bound", "trials"),
    *("predicted", "divergence", "bytes_error"),
)

_NET = flags.DEFINE_enum("net", "resnet8", nets.NETS, "Which net.")
_MODEL = flags.DEFINE_string("model", None, "Its .keras file.", required=True)
_PART = flags.DEFINE_enum("part", "front", ["front", *PARTS], "Which rows.")
_ONLY = flags.DEFINE_list("only", [], "Names of rows; all of the part by default.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of training, one run each.")
_EPOCHS = flags.DEFINE_integer("epochs", 4, "Epochs of training of a candidate.")
_TRIALS = flags.DEFINE_integer("trials", 2, "Candidates that are trained for a budget.")
_DATA = flags.DEFINE_string("data_dir", None, "Folder of the data sets; default $TFCOMPRESS_DATA.")
_OUTPUT = flags.DEFINE_string("output", str(RESULTS), "Folder of the rows.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    part, net_name = _PART.value, _NET.value
    net = nets.load(net_name, pathlib.Path(_MODEL.value), _DATA.value)
    results = Results(
        pathlib.Path(_OUTPUT.value) / "search.csv", ("net", "part", "row", "seed", "epochs")
    )
    epochs = 0 if part == "ranking" else _EPOCHS.value
    names = _ONLY.value or {"front": front.ROWS, "drop": drop.ROWS}.get(part) or ranking.rows(net)
    with tfc.shared_converter():
        for seed in _SEEDS.value:
            for name in names:
                key = {"net": net_name, "part": part, "row": name, "seed": seed, "epochs": epochs}
                if results.has(**key):
                    continue
                measured, start = commit(), time.process_time()
                measure = PARTS.get(part) or functools.partial(front.measure, trials=_TRIALS.value)
                found = dict(measure(name, net, int(seed), epochs))
                figures = {column: found.pop(column, "") for column in COLUMNS}
                if found:
                    raise ValueError(f"Expected figures among {COLUMNS}. Received: {found}.")
                figures["cpu_seconds"] = f"{time.process_time() - start:.0f}"
                command = (
                    f"python -m benchmarks.search --net={net_name} --part={part} "
                    f'--epochs={epochs} --only="{name}" --seeds={seed}'
                    + (f" --trials={_TRIALS.value}" if part == "front" else "")
                )
                results.add(**key, **figures, commit=measured, command=command)
                print(key, figures, flush=True)
    if _OUTPUT.value == str(RESULTS):
        page.write(results.rows)
    if part == "ranking":
        mine = [r for r in results.rows if r["net"] == net_name and r["part"] == part]
        print(f"Spearman's rank correlation of {len(mine)} rows: {ranking.correlation(mine):.3f}")


if __name__ == "__main__":
    app.run(main)
