"""Gradients between two processes of this machine: bytes, loss and accuracy of floats and codes.

    unshare -rn sh -c 'ip link set lo up && python -m benchmarks.gradient_traffic'
    python -m benchmarks.gradient_traffic --workers=8 --steps=40   # bytes on more workers
    python -m benchmarks.gradient_traffic --print                  # what was measured before

LeNet-5 on MNIST from random weights, SGD with momentum, batches of 128 over all workers together,
by stock `fit` under `MultiWorkerMirroredStrategy`. Rows: floats, and `QuantizedGradients` of 8, 4
and 2 bits, with error feedback; "without feedback" without it.

| column     | what it is                                                                          |
|------------|-------------------------------------------------------------------------------------|
| `handed`   | bytes that a worker hands to TensorFlow for the gradients of a step                 |
| `network`  | bytes that a worker sends in a step: what the loopback interface counts over all    |
|            | steps but the first ten, divided by steps and workers; with headers, metrics, polls |
| `counted`  | bytes by the formula of `tfc.distribute.gradient_traffic`                           |
| `equal`    | whether weights and optimizer, but for the errors, are equal on all workers         |
| `loss`     | mean over the last epoch                                                            |

The interface counts what all processes send. The first form above runs in a network of its own, in
which nothing else does. Rows are appended to a table; what it has is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfcompress as tfc
from recipes import distributed, models
from recipes.origin import commit
from recipes.results import Results, markdown, summary
from tfcompress.tools import datasets

BATCH, RATE, SKIPPED = 128, 0.02, 10
#: Row → bits and error feedback.
ROWS = {
    "float": (0, False),
    "8 bits": (8, True),
    "4 bits": (4, True),
    "2 bits": (2, True),
    "4 bits without feedback": (4, False),
}


class Handed:
    """Notes how many bytes the replica hands to the collectives, while a train step is traced."""

    def __init__(self) -> None:
        self.bytes = 0
        for name in ("all_reduce", "all_gather"):
            original = getattr(tf.distribute.ReplicaContext, name)
            setattr(tf.distribute.ReplicaContext, name, self._noting(original))

    def _noting(self, original: Callable) -> Callable:
        def noting(context: Any, *arguments: Any, **options: Any) -> Any:
            tensors = [t for t in tf.nest.flatten([arguments, options]) if tf.is_tensor(t)]
            size = sum(int(np.prod(t.shape)) * t.dtype.size for t in tensors)
            self.bytes = max(self.bytes, size)
            return original(context, *arguments, **options)

        return noting


class Interface(keras.callbacks.Callback):
    """Reads the counter of the loopback interface after the first steps and after the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = -SKIPPED
        self.first = self.last = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        if self.steps == 0:
            self.first = _sent()
        self.last = _sent()


def _sent() -> int:
    """Bytes that the loopback interface has sent."""
    for line in pathlib.Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise OSError("Expected an interface named lo in /proc/net/dev.")


def train(row: str, seed: int, epochs: int, steps: int, data_dir: str | None) -> dict[str, Any]:
    """Trains one worker of the cluster of `TF_CONFIG`, and returns what it has found."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    (x, y), test = datasets.load("mnist", data_dir)
    if steps:
        x, y, epochs = x[: steps * BATCH], y[: steps * BATCH], 1
    bits, feedback = ROWS[row]
    keras.utils.set_random_seed(seed)
    handed, interface = Handed(), Interface()
    with strategy.scope():
        model = models.build("lenet5", (28, 28, 1), 10)
        optimizer = keras.optimizers.SGD(RATE, momentum=0.9)
        if bits:
            optimizer = tfc.QuantizedGradients(optimizer, bits, error_feedback=feedback, seed=seed)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])
    tfc.distribute.across_workers(model)
    batches = tfc.ShuffledBatches(x, y, batch_size=BATCH, seed=seed, drop_remainder=True)
    options = {"shuffle": False, "verbose": 0, "callbacks": [interface]}
    history = model.fit(batches, epochs=epochs, **options).history
    own = {id(v) for v in getattr(optimizer, "replica_variables", ())}
    state = [v for v in (*model.weights, *optimizer.variables) if id(v) not in own]
    digest = hashlib.sha256(b"".join(np.asarray(v).tobytes() for v in state)).hexdigest()
    workers = strategy.num_replicas_in_sync
    parameters = model.count_params()
    # In a ring, each sends twice its floats but for one share in `workers`.
    counted = 2 * (workers - 1) / workers * 4 * parameters
    if bits:
        counted = tfc.distribute.gradient_traffic(model).code_bytes
    # Of the same weights on every worker.
    logits = [np.asarray(model(part, training=False)) for part in np.array_split(test[0], 20)]
    accuracy = np.mean(np.concatenate(logits).argmax(-1) == test[1])
    return {
        "steps": epochs * len(batches),
        "loss": round(history["loss"][-1], 4),
        "accuracy": round(100 * float(accuracy), 2),
        "parameters": parameters,
        "handed": handed.bytes,
        "network": round((interface.last - interface.first) / interface.steps / workers),
        "counted": round(counted),
        "digest": digest,
    }


def measure(row: str, seed: int) -> dict[str, Any]:
    """Runs all workers of a row."""
    workers = flags.FLAGS.workers
    ports = distributed.free_ports(workers)
    with tempfile.TemporaryDirectory() as name:
        targets = [pathlib.Path(name) / str(index) for index in range(workers)]
        start = time.monotonic()
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.gradient_traffic", f"--child={row}"),
                    *(f"--seeds={seed}", f"--target={target}", f"--epochs={flags.FLAGS.epochs}"),
                    f"--steps={flags.FLAGS.steps}",
                    *([f"--data_dir={flags.FLAGS.data_dir}"] if flags.FLAGS.data_dir else []),
                ],
                env={**os.environ, "TF_CONFIG": distributed.cluster(ports, index)},
            )
            for index, target in enumerate(targets)
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"The workers of {row!r} ended with {codes}.")
        seconds = time.monotonic() - start
        found = [json.loads(target.read_text(encoding="utf-8")) for target in targets]
    digests = {each.pop("digest") for each in found}
    return {**found[0], "equal": len(digests) == 1, "seconds": round(seconds)}


def table(rows: list[dict[str, str]]) -> str:
    """Means over the seeds."""
    by = ("workers", "row", "steps", "equal")
    means = {"loss": 4, "accuracy": 2, "handed": 0, "network": 0, "counted": 0}
    return markdown((*by, "seeds", *means), summary(rows, by, means))


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    if given.child:
        arguments = (given.child, int(given.seeds[0]), given.epochs, given.steps, given.data_dir)
        found = train(*arguments)
        pathlib.Path(given.target).write_text(json.dumps(found), encoding="utf-8")
        return
    results = Results(pathlib.Path(given.csv), ("row", "workers", "seed"))
    wanted = [(row, int(seed)) for seed in given.seeds for row in given.only]
    for row, seed in [] if given.print else wanted:
        key = {"row": row, "workers": given.workers, "seed": seed}
        if results.has(**key):
            continue
        found = measure(row, seed)
        command = (
            f'python -m benchmarks.gradient_traffic --only="{row}" --seeds={seed} '
            f"--workers={given.workers} --epochs={given.epochs} --steps={given.steps}"
        )
        results.add(**key, **found, commit=commit(), command=command)
        print(key, found, flush=True)
    print(table(results.rows))


if __name__ == "__main__":
    flags.DEFINE_list("only", list(ROWS), "Rows.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    flags.DEFINE_integer("workers", 2, "Processes.", 2)
    flags.DEFINE_integer("epochs", 1, "Epochs.", 1)
    flags.DEFINE_integer("steps", 0, "Only so many steps; 0: whole epochs.", 0)
    flags.DEFINE_string("data_dir", None, "Folder of the data sets.")
    flags.DEFINE_string("csv", "recipes/results/gradient_traffic.csv", "The table.")
    flags.DEFINE_bool("print", False, "Print the table and measure nothing.")
    flags.DEFINE_string("child", None, "Internal: train one worker of this row.")
    flags.DEFINE_string("target", None, "Internal: where it writes what it has found.")
    app.run(main)
