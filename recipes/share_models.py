"""Two models, trained apart on MNIST and on Fashion-MNIST, tied together and put into one file.

Both have the architecture of `small_cnn`. Every layer of equal shape but the heads becomes one
layer; batch norms and heads stay apart; both tasks are then trained on together. Accuracy is that
of the int8 files, run by LiteRT: of each model alone, and of both signatures of the one file.
Rows go to `share.csv` in `--output`; started again, the recipe skips what is there.

    python -m recipes.share_models --data_dir=~/data

About 25 minutes per seed on two cores.
"""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfcompress as tfc
from recipes import models, resuming
from recipes.batches import batches, steady
from recipes.kept import kept_model
from recipes.results import Results, summary
from tfcompress.export import Runner
from tfcompress.model import render_table
from tfcompress.sharing import share_weights
from tfcompress.tools import datasets

# The harder task comes first: the shared layers begin with its kernels.
TASKS = ("fashion_mnist", "mnist")
KEY = ("seed", "epochs", "joint_epochs", "train_samples")
MEASURED = tuple(f"{task}_{kind}" for task in TASKS for kind in ("alone", "shared"))
_HEAD = "logits"


def compiled(model, steps: int, rate: float):
    losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=True) for _ in model.outputs]
    decay = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(decay), losses if len(losses) > 1 else losses[0])
    return model


def trained(task: str, data: tuple, seed: int, epochs: int, path: pathlib.Path) -> keras.Model:
    """A model of one task, trained once and kept."""

    def train() -> keras.Model:
        model = models.build("small_cnn", (28, 28, 1), 10)
        model.name = task
        samples = batches(*data, seed)
        compiled(model, epochs * len(samples), 2e-3)
        resuming.fit(model, samples, epochs=epochs, verbose=2)
        return model

    return kept_model(path, train, seed)


def tied(apart: list[keras.Model], data: dict, seed: int, epochs: int, rate: float):
    """The models with shared layers, trained on together."""
    keras.utils.set_random_seed(1000 + seed)
    for index, model in enumerate(apart):
        model.name = TASKS[index]
    shared = share_weights(apart, tolerance=2.0, value="first", keep_apart=_HEAD)
    print(shared)
    pairs = tf.data.Dataset.zip(*(batches(*data[task][0], seed) for task in TASKS))
    train = steady(pairs.map(lambda a, b: ((a[0], b[0]), (a[1], b[1]))).prefetch(2))
    compiled(shared.joint, epochs * len(train), rate)
    resuming.fit(shared.joint, train, epochs=epochs, verbose=2)
    return shared


def measure(files: dict[str, tuple[pathlib.Path, str]], data: dict) -> dict[str, str]:
    found = {}
    for task, (path, signature) in files.items():
        x, y = data[task][1]
        logits = next(iter(Runner(path, signature=signature).predict(x).values()))
        found[task] = f"{100 * np.mean(logits.argmax(-1) == y):.2f}"
    return found


def run(settings, folder: pathlib.Path, results: Results, data: dict) -> None:
    for seed in map(int, settings.seeds):
        samples = len(data[TASKS[0]][0][0])
        values = (seed, settings.epochs, settings.joint_epochs, samples)
        key = dict(zip(KEY, values, strict=True))
        if results.has(**key):
            continue
        stem = f"share_{settings.epochs}_{samples}"
        apart = [
            trained(
                task,
                data[task][0],
                seed + i,
                settings.epochs,
                folder / f"{stem}_{task}_{seed}.keras",
            )
            for i, task in enumerate(TASKS)
        ]

        def quantized(model, task):
            return tfc.quantize(model, calibration_data=data[task][0][0][:512])

        alone, sizes = {}, 0
        for task, model in zip(TASKS, apart, strict=True):
            path = folder / f"share_{task}_{seed}.tflite"
            report = tfc.export_tflite(
                quantized(model, task), path, verify_data=data[task][1][0][:200]
            )
            alone[task] = path, "serving_default"
            sizes += report.num_bytes
        shared = tied(apart, data, seed, settings.joint_epochs, settings.joint_learning_rate)
        both = {t: quantized(m, t) for t, m in zip(TASKS, shared.models, strict=True)}
        path = folder / f"share_both_{seed}.tflite"
        verify = {task: data[task][1][0][:200] for task in TASKS}
        report = tfc.export_tflite(both, path, verify_data=verify)
        before, after = (measure(f, data) for f in (alone, {t: (path, t) for t in TASKS}))
        accuracies = {
            f"{task}_{kind}": found[task]
            for task in TASKS
            for kind, found in (("alone", before), ("shared", after))
        }
        results.add(
            **key,
            **accuracies,
            sum_bytes=sizes,
            one_bytes=report.num_bytes,
            ratio=f"{report.num_bytes / sizes:.4f}",
        )


def table(rows) -> str:
    means = dict.fromkeys((*MEASURED, "sum_bytes", "one_bytes", "ratio"), 2)
    heads = (*KEY[1:], "seeds", *means)
    return render_table("Two models in one file", heads, summary(rows, KEY[1:], means), width=200)


def define_flags() -> None:
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one run each.")
    flags.DEFINE_integer("epochs", 6, "Epochs of each model alone.", 1)
    flags.DEFINE_integer("joint_epochs", 6, "Epochs of both together.", 1)
    flags.DEFINE_float("joint_learning_rate", 2e-3, "Start of the cosine for them.", 0.0)
    flags.DEFINE_integer("train_samples", 0, "Training samples per task; 0 for all.", 0)
    flags.DEFINE_string("data_dir", None, "Folder of mnist.npz and fashion_mnist.npz.")
    flags.DEFINE_string("output", "outputs", "Folder of results, models and files.")


def main(argv) -> None:
    del argv
    settings = flags.FLAGS
    folder = pathlib.Path(settings.output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(folder / "share.csv", KEY)
    data = {}
    for task in TASKS:
        (x, y), test = datasets.load(task, settings.data_dir)
        limit = settings.train_samples or len(x)
        data[task] = (x[:limit], y[:limit]), test
    run(settings, folder, results, data)
    print(table(results.rows))


if __name__ == "__main__":
    define_flags()
    app.run(main)
