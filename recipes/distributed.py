"""Digits on several workers: trained, pruned and quantized in one `fit`, then exported.

    python -m recipes.distributed --workers=2       # two processes on this machine
    TF_CONFIG='...' python -m recipes.distributed   # one worker of a cluster, on each machine

The first form starts the workers, and starts all of them again when one is lost: each goes on from
the last backup, and ends with the bits that an undisturbed training gives. Then it exports what the
first worker has saved, in a process without a strategy. In a cluster every worker runs the second
form, with `--output_dir` in a folder that all of them can read; run it again after a loss, and
export at the end with `--workers=0`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfcompress as tfc
from recipes import models
from tfcompress.export import Runner
from tfcompress.tools import datasets

_BATCH = 64


def train(
    folder: pathlib.Path,
    epochs: int = 8,
    sparsity: float = 0.8,
    samples: int | None = None,
    gradient_bits: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> tuple[list[float], str]:
    """Trains on the cluster of `TF_CONFIG`, or alone; the first worker saves `model.keras`.

    Args:
        folder: For the backups and the model.
        epochs: Epochs; rounding begins after a quarter of their steps.
        sparsity: Share of weights that are zero in the end.
        samples: How many of the training images; by default all.
        gradient_bits: Bits of the codes that workers send each other; 0 for floats.
        callbacks: More callbacks.

    Returns:
        The loss of each epoch, and a digest of all weights, masks, ranges and momenta, which is the
        same on every worker. What rounding has taken from its gradients, each keeps for itself.
    """
    is_cluster = "TF_CONFIG" in os.environ
    # Before TensorFlow does anything else.
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if is_cluster else None
    (x, y), _ = datasets.load("digits")
    batches = tfc.ShuffledBatches(x[:samples], y[:samples], batch_size=_BATCH, drop_remainder=True)
    steps = epochs * len(batches)
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = tfc.quantize(models.build("digits_cnn", x.shape[1:], 10))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        if gradient_bits:
            optimizer = tfc.QuantizedGradients(optimizer, gradient_bits)
        model.compile(optimizer, loss, metrics=["accuracy"])
    if strategy:
        tfc.distribute.across_workers(model)
    decay = tfc.PolynomialDecay(0.0, sparsity, steps // 4, steps * 3 // 4, frequency=5)
    used = [
        tfc.callbacks.Pruning(decay, scope="global", verbose=0),
        # Trained in float first, while the ranges form.
        tfc.callbacks.QuantizationSchedule(steps // 4, steps * 3 // 4, steps // 2),
        *callbacks,
        tfc.callbacks.BackupAndRestore(folder / "backup", save_freq=10, data=batches),
    ]
    history = model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=used).history
    if tfc.distribute.is_chief():
        model.save(folder / "model.keras")
    own = {id(v) for v in getattr(model.optimizer, "replica_variables", ())}
    shared = [v for v in (*model.weights, *model.optimizer.variables) if id(v) not in own]
    state = [np.asarray(v) for v in shared]
    digest = hashlib.sha256(b"".join(value.tobytes() for value in state)).hexdigest()
    return history.get("loss", []), digest


def launch(workers: int, arguments: Sequence[str], restarts: int = 3) -> int:
    """Runs this recipe in so many processes of one cluster on this machine.

    Args:
        workers: Number of processes.
        arguments: Of the command line of each.
        restarts: How often all are started again after one was lost.

    Returns:
        How often that was.

    Raises:
        RuntimeError: One was lost once more.
    """
    for attempt in range(restarts + 1):
        ports = free_ports(workers)
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "recipes.distributed", *arguments],
                env={**os.environ, "TF_CONFIG": cluster(ports, index)},
            )
            for index in range(workers)
        ]
        try:
            while all(process.poll() in (None, 0) for process in processes):
                if all(process.poll() == 0 for process in processes):
                    return attempt
                time.sleep(0.2)
        finally:
            # Those that are left would wait for the one that was lost.
            for process in processes:
                process.kill()
                process.wait()
    raise RuntimeError(f"Expected {workers} workers that end. Received: {restarts + 1} failures.")


def cluster(ports: Sequence[int], index: int) -> str:
    """The `TF_CONFIG` of one worker on this machine."""
    workers = [f"127.0.0.1:{port}" for port in ports]
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def export(folder: pathlib.Path) -> tfc.ExportReport:
    """Exports what the first worker has saved, and prints the accuracy of the file."""
    _, (x, y) = datasets.load("digits")
    model = keras.saving.load_model(folder / "model.keras")
    report = tfc.export_tflite(model, folder / "digits.tflite", verify_data=x)
    found = Runner(folder / "digits.tflite").predict(x)["logits"].argmax(-1)
    print(report)
    print(f"Accuracy of the file on {len(y)} test digits: {np.mean(found == y):.2%}")
    return report


def train_and_print(folder: pathlib.Path, **options: Any) -> None:
    """One worker: `train`, and its losses and digest in one line."""
    losses, digest = train(folder, **options)
    print(f"Losses {[round(loss, 3) for loss in losses]}; state {digest[:16]}", flush=True)


def define_flags() -> None:
    """The flags of the training, whatever launches its workers."""
    flags.DEFINE_integer("workers", 2, "Workers, each a process; 0 only exports.", 0)
    flags.DEFINE_integer("epochs", 8, "Epochs.", 1)
    flags.DEFINE_float("sparsity", 0.8, "Share of weights that are zero in the end.", 0.0, 1.0)
    flags.DEFINE_integer(
        "gradient_bits", 0, "Bits of gradients between workers; 0: float32.", 0, 16
    )
    flags.DEFINE_string(
        "output_dir", "distributed", "Folder of the backups, the model and the file."
    )


def options_of_flags() -> dict[str, Any]:
    """What the flags say of `train`, by name, but for the folder."""
    return {name: flags.FLAGS[name].value for name in ("epochs", "sparsity", "gradient_bits")}


def main(argv: list[str]) -> None:
    del argv
    folder = pathlib.Path(flags.FLAGS.output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    options = options_of_flags()
    if "TF_CONFIG" in os.environ:
        train_and_print(folder, **options)
        return
    if flags.FLAGS.workers:
        arguments = [f"--{name}={value}" for name, value in options.items()]
        lost = launch(flags.FLAGS.workers, [f"--output_dir={folder}", *arguments])
        print(f"Trained on {flags.FLAGS.workers} workers, started again {lost} times")
    export(folder)


if __name__ == "__main__":
    define_flags()
    app.run(main)
