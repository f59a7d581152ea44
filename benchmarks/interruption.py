"""Trainings that are killed and started again, beside the same trainings undisturbed.

    python -m benchmarks.interruption                 # every technique, killed in three places
    python -m benchmarks.interruption --cases=LSQ     # one of them
    python -m benchmarks.interruption --print         # the table of what was measured before

Each training is a process: three epochs of five steps, dropout, shuffled batches, momentum. The
methods of pruning and the penalties train together, on a layer each. It is killed by SIGKILL and
run again with the same `callbacks.BackupAndRestore`:

- epoch: a backup after every epoch; killed at the eighth step, so three steps are done again;
- mid-epoch: a backup every two steps; killed at the eighth step, one step after the last backup;
- end: killed after the last epoch, before `fit` returns.

"equal" means that every variable of model and optimizer, and what the last epoch logged, has the
same bits as in the undisturbed training. Rows are appended to a table; what it has is not measured
again.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import app, flags
from keras import layers

import tfcompress as tfc

EPOCHS, STEPS, BATCH = 3, 5, 8
PLACES = ("epoch", "mid-epoch", "end")
#: Killed at this step, where it is not at the end.
KILLED_AT = 8
_COLUMNS = ("case", "killed", "outcome")


class Kill(keras.callbacks.Callback):
    """Ends the process without a chance to tidy up."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.place != "end" and int(self.model.optimizer.iterations.numpy()) == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, logs: Any = None) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels."""
    random = np.random.default_rng(0)
    return random.normal(size=(STEPS * BATCH, 6, 6, 2)).astype("float32"), np.arange(40) % 3


def net(name: str = "net") -> keras.Model:
    """A small network with batch norm and dropout."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Dropout(0.25)(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name=name)


def quantized() -> keras.Model:
    return tfc.quantize(net(), calibration_data=data()[0])


def distiller(student: keras.Model) -> keras.Model:
    stated = {"teacher_from_logits": True, "student_from_logits": True}
    return tfc.Distiller(net("teacher"), student, tfc.LogitsDistillation(**stated))


def pruning(schedule: Any, **options: Any) -> Callable[[], list]:
    return lambda: [tfc.callbacks.Pruning(schedule, data=data(), verbose=0, **options)]


def _decay() -> Any:
    return tfc.PolynomialDecay(0.0, 0.75, 1, 12, frequency=2)


def _sgd() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9)


def _schedule() -> list:
    return [tfc.callbacks.QuantizationSchedule(2, 9, 11)]


def _temperatures() -> list:
    return [tfc.callbacks.DistillationSchedule(temperature=lambda step: 1.0 + step)]


def _channels(criterion: str = "magnitude") -> Callable[[], list]:
    return lambda: [
        tfc.callbacks.ChannelPruning(
            _decay(), criterion=criterion, data=data(), round_to=1, verbose=0
        )
    ]


def _guided_widths() -> list:
    return [tfc.callbacks.GuidedWidths("loss", 10.0, rate=0.3, round_to=1, verbose=0)]


def _guided_bits() -> list:
    return [tfc.callbacks.GuidedBits("loss", 10.0, bits=(6, 4))]


@dataclasses.dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        make: Makes the model.
        callbacks: Makes the callbacks.
        optimizer: Makes the optimizer.
        rows: Row of the table → the layer whose variables it tells of; by default one of all.
    """

    make: Callable[[], Any] = net
    callbacks: Callable[[], list] = list
    optimizer: Callable[[], Any] = _sgd
    rows: dict[str, str] = dataclasses.field(default_factory=dict)


#: Row → schedule or method, and options. Each prunes a layer of its own, all in one training.
_PRUNINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Pruning, magnitude": (_decay(), {}),
    "Pruning, Block(1, 4)": (_decay(), {"pattern": tfc.Block(1, 4)}),
    "Pruning, channels": (_decay(), {"criterion": "l2", "pattern": "channels"}),
    "Pruning, NOfM(2, 4)": (tfc.ConstantSparsity(0.5), {"pattern": tfc.NOfM(2, 4)}),
    "Pruning, random": (_decay(), {"criterion": "random"}),
    "Pruning, taylor": (_decay(), {"criterion": "taylor"}),
    "Pruning, fisher": (_decay(), {"criterion": "fisher"}),
    "Pruning, entropy": (_decay(), {"criterion": "entropy"}),
    "Pruning, snip": (tfc.ConstantSparsity(0.5, 0, 0), {"criterion": "snip"}),
    "Pruning, movement": (_decay(), {"criterion": "movement"}),
    "DynamicNetworkSurgery": (tfc.DynamicNetworkSurgery(_decay(), frequency=2), {}),
    "SET": (tfc.SET(0.75, 12, frequency=3), {}),
    "RigL": (tfc.RigL(0.75, 12, frequency=3), {}),
    "MetricGuided": (tfc.MetricGuided("loss", 10.0), {}),
}
_PENALTIES = ("ThresholdPruning", "Regularization", "Regularization, proximal")


def _layer(index: int) -> str:
    return f"layer{index:02d}"


def _stack() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Dense(8)(layers.Dropout(0.25)(layers.Flatten()(inputs)))
    for index in range(len(_PRUNINGS) + len(_PENALTIES)):
        x = layers.Add()([x, layers.Dense(8, "tanh", name=_layer(index))(x)])
    return keras.Model(inputs, layers.Dense(3)(x))


def _all_prunings() -> list:
    scoring = tfc.ScoringOptions(num_batches=1)
    options = {"data": data(), "scoring": scoring, "verbose": 0}
    made = [
        tfc.callbacks.Pruning(method, layers=_layer(i), **options, **own)
        for i, (method, own) in enumerate(_PRUNINGS.values())
    ]
    threshold, penalty, proximal = (_layer(len(made) + i) for i in range(3))
    return [
        *made,
        tfc.callbacks.ThresholdPruning([4, 11], num_std=0.5, l1=1e-3, layers=threshold, verbose=0),
        tfc.callbacks.Regularization(l1=1e-3, schedule=lambda s: s / 10, layers=penalty),
        tfc.callbacks.Regularization(l1=0.05, proximal=True, layers=proximal),
    ]


def _everything() -> keras.Model:
    return distiller(tfc.quantize(tfc.cluster(net(), 4), calibration_data=data()[0]))


def _lsq() -> keras.Model:
    scheme = tfc.Scheme(weights=tfc.WeightScheme(quantizer=tfc.LSQ()))
    return tfc.quantize(net(), scheme, calibration_data=data()[0])


CASES: dict[str, Case] = {
    "no technique": Case(),
    "pruning": Case(
        _stack,
        _all_prunings,
        rows={name: _layer(i) for i, name in enumerate((*_PRUNINGS, *_PENALTIES))},
    ),
    "ChannelPruning": Case(callbacks=_channels()),
    "ChannelPruning, taylor": Case(callbacks=_channels("taylor")),
    "GuidedWidths": Case(callbacks=_guided_widths),
    "GuidedBits": Case(quantized, _guided_bits),
    "Clustering": Case(lambda: tfc.cluster(net(), 4), lambda: [tfc.callbacks.Clustering(3)]),
    "QuantizationSchedule": Case(quantized, _schedule),
    "LSQ": Case(_lsq, _schedule),
    "Distiller": Case(lambda: distiller(net("student")), _temperatures),
    "QuantizedGradients": Case(optimizer=lambda: tfc.QuantizedGradients(_sgd(), 4)),
    "everything": Case(
        _everything,
        lambda: [
            *pruning(_decay())(),
            tfc.callbacks.Clustering(3),
            *_schedule(),
            *_temperatures(),
            tfc.callbacks.Regularization(l1=1e-3),
        ],
        lambda: tfc.QuantizedGradients(_sgd(), 6),
    ),
}


def train(case: str, folder: pathlib.Path | None, place: str, kill: bool = False) -> dict[str, str]:
    """Trains a case and returns the digest of each variable and of the last logs.

    Args:
        case: Name of the case.
        folder: Of the backups; `None` for none.
        place: Where it is, or was, killed.
        kill: Whether it is killed now.
    """
    chosen = CASES[case]
    keras.utils.set_random_seed(0)
    model = chosen.make()
    # Another sequence of a layer's random numbers in each process, until a backup is restored.
    keras.utils.set_random_seed(0 if folder is None or kill else 1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(chosen.optimizer(), loss, metrics=["accuracy"])
    batches = tfc.ShuffledBatches(*data(), batch_size=BATCH)
    used = [*([Kill(place)] if kill else []), *chosen.callbacks()]
    if folder is not None:
        frequency = 2 if place == "mid-epoch" else "epoch"
        used.append(tfc.callbacks.BackupAndRestore(folder, frequency, data=batches))
    else:
        used.append(_InOrder(batches))
    logs = model.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=used).history
    variables = (*model.variables, *model.optimizer.variables)
    # The paths of a second model in one process are others.
    state = {f"{i} {v.path}": np.asarray(v) for i, v in enumerate(variables)}
    if place != "end" or folder is None:
        state |= {f"log {name}": np.asarray(values[-1:]) for name, values in logs.items()}
    return {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in state.items()}


class _InOrder(keras.callbacks.Callback):
    """Sets the epoch of the batches, as `BackupAndRestore` does."""

    def __init__(self, batches: tfc.ShuffledBatches) -> None:
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.batches.epoch = epoch


def outcome(whole: dict[str, str], resumed: dict[str, str], place: str) -> str:
    """ "equal", or what differs."""
    # After the last epoch there is none left to log.
    names = [n for n in whole if not (place == "end" and n.startswith("log "))]
    others = list(resumed.values())
    wrong = [n for i, n in enumerate(whole) if n in names and others[i : i + 1] != [whole[n]]]
    return "equal" if not wrong else f"differs: {', '.join(wrong[:4])} ({len(wrong)} in all)"


def _child(arguments: tuple, target: pathlib.Path) -> None:
    target.write_text(json.dumps(train(*arguments)), encoding="utf-8")


def run(*arguments: Any, folder: pathlib.Path) -> dict[str, str] | None:
    """`train` in a process; `None` where it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keras", "tfcompress"])
    target = folder / "digest.json"
    target.unlink(missing_ok=True)
    process = context.Process(target=_child, args=(arguments, target))
    process.start()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return None
    if process.exitcode:
        raise RuntimeError(f"{arguments} ended with {process.exitcode}")
    return json.loads(target.read_text(encoding="utf-8"))


def measure(case: str) -> dict[str, dict[str, str]]:
    """Row of the table → place → outcome."""
    rows = CASES[case].rows or {case: ""}
    found: dict[str, dict[str, str]] = {row: {} for row in rows}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = run(case, None, "", folder=folder)
        for place in PLACES:
            backups = folder / place
            if run(case, backups, place, True, folder=folder) is not None:
                raise RuntimeError(f"{case} was not killed")
            resumed = run(case, backups, place, folder=folder)
            assert whole is not None
            assert resumed is not None
            for row, layer in rows.items():
                of_layer = [
                    {n: digest for n, digest in each.items() if layer in n}
                    for each in (whole, resumed)
                ]
                found[row][place] = outcome(*of_layer, place)
    return found


def read(path: pathlib.Path) -> dict[tuple[str, str], str]:
    """(case, place) → outcome."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        return {(row["case"], row["killed"]): row["outcome"] for row in csv.DictReader(file)}


def main(argv: list[str]) -> None:
    del argv
    path = pathlib.Path(flags.FLAGS.csv)
    for case in [] if flags.FLAGS.print else flags.FLAGS.cases or CASES:
        rows = CASES[case].rows or {case: ""}
        if all((row, place) in read(path) for row in rows for place in PLACES):
            continue
        found = measure(case)
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if is_new:
                writer.writerow(_COLUMNS)
            writer.writerows((row, place, found[row][place]) for row in rows for place in PLACES)
        print(case, found, flush=True)
    found = read(path)
    print(f"| technique | {' | '.join(PLACES)} |\n|---|{'---|' * len(PLACES)}")
    for case in dict.fromkeys(case for case, _ in found):
        print(f"| {case} | {' | '.join(found[case, place] for place in PLACES)} |")


if __name__ == "__main__":
    flags.DEFINE_list("cases", [], "Which; by default all.")
    flags.DEFINE_bool("print", False, "Print the table and measure nothing.")
    flags.DEFINE_string("csv", "recipes/results/interruption.csv", "Table of outcomes.")
    app.run(main)
