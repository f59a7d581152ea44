"""Clustering + int8 on a trained ResNet-8, CIFAR-10: the codes in the file, its bytes, accuracy.

All variants start from the same float model and train for the same further epochs:

| variant        | what it is                                                                 |
|----------------|----------------------------------------------------------------------------|
| `float`        | the control, trained on in float                                           |
| `int8`         | quantized                                                                  |
| `int8, k`      | quantized and clustered to k values per kernel, in one `fit`               |
| `tfmot, k`     | tfmot's clustering, then int8 by calibration, in a process of its own      |

Everything is measured on the `.tflite`, run by LiteRT on the whole test set. `codes` is the largest
number of different codes in a kernel. Rows are added to `cluster.csv` in `--output`; started again,
the recipe skips what is there. About 15 minutes per seed on two cores, tfmot included.

    python -m recipes.cluster --data_dir=~/data --start=resnet8.keras
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from recipes import resuming
from recipes.batches import BATCH, augmented
from recipes.cluster_tfmot import in_subprocess
from recipes.models import with_fused_batch_norm
from recipes.results import Results, summary
from tfcompress.export import Runner, gzip_size, inspect_tflite
from tfcompress.model import render_table
from tfcompress.sharing import Clustering, cluster
from tfcompress.tools import datasets

KEY = ("variant", "seed", "epochs", "train_samples")


def fit(model, x, y, seed: int, epochs: int, rate: float, callbacks: Sequence = ()) -> None:
    """Adam with cosine decay on augmented batches, the same for every variant of a seed."""
    batches = augmented(x, y, seed)
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * len(batches))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    resuming.fit(model, batches, epochs=epochs, verbose=2, callbacks=callbacks)


def float_control(start, x, y, seed: int, epochs: int, rate: float) -> keras.Model:
    model = with_fused_batch_norm(start)
    fit(model, x, y, seed, epochs, rate)
    return tfc.strip(model)


def int8(start, x, y, seed: int, epochs: int, rate: float, k: int | None, init: str):
    """Quantized, and clustered where k is given; the last third with fixed assignments."""
    chosen = np.random.default_rng(seed).choice(len(x), min(512, len(x)), replace=False)
    model = start if k is None else cluster(start, k, init=init, seed=seed)
    model = tfc.quantize(model, calibration_data=x[chosen])
    steps = epochs * (len(x) // BATCH)
    callbacks = [
        tfc.callbacks.QuantizationSchedule(
            freeze_ranges_step=steps * 3 // 4, freeze_batch_norm_step=steps // 2
        )
    ]
    if k is not None:
        callbacks.append(Clustering(frequency=max(1, steps // 60), end_step=steps * 2 // 3))
    fit(model, x, y, seed, epochs, rate, callbacks)
    return model


def measured(path: pathlib.Path, test: tuple) -> dict[str, str]:
    """Accuracy, bytes and codes of a file."""
    x, y = test
    logits = next(iter(Runner(path).predict(x).values()))
    kernels = [t for t in inspect_tflite(path).tensors if t.is_constant and t.dtype == "int8"]
    codes = [t.num_distinct for t in kernels if len(t.shape) > 1]
    data = path.read_bytes()
    return {
        "accuracy": f"{100 * np.mean(logits.argmax(-1) == y):.2f}",
        "codes": str(max(codes, default=0)),
        "num_bytes": str(len(data)),
        "gzip_bytes": str(gzip_size(data)),
    }


def run(settings, results: Results, data: tuple, start: keras.Model) -> None:
    """All variants of all seeds that are not in the results."""
    (x, y), test = data
    rate, epochs = settings.learning_rate, settings.epochs
    folder = results.path.parent
    numbers = [int(k) for k in settings.clusters]
    for seed in map(int, settings.seeds):
        makers: dict[str, Callable[[pathlib.Path], None]] = {}

        def export(model, path):
            tfc.export_tflite(model, path, verify_data=test[0][:500], allow_float=True)

        common = (start, x, y, seed, epochs, rate)
        makers["float"] = lambda path, c=common: export(float_control(*c), path)
        makers["int8"] = lambda path, c=common: export(int8(*c, None, settings.init), path)
        for k in numbers:
            makers[f"int8, {k}"] = lambda path, c=common, k=k: export(
                int8(*c, k, settings.init), path
            )
        for k in numbers if settings.tfmot else ():
            makers[f"tfmot, {k}"] = lambda path, s=seed, k=k: in_subprocess(
                start, data, path, k, epochs, s, rate
            )
        for variant, make in makers.items():
            key = dict(zip(KEY, (variant, seed, epochs, len(x)), strict=True))
            if results.has(**key):
                continue
            keras.utils.set_random_seed(1000 + seed)
            path = folder / f"cluster_{variant.replace(', ', '_')}_{seed}.tflite"
            make(path)
            results.add(**key, **measured(path, test))


def table(rows: Sequence[dict[str, str]]) -> str:
    """Mean ± deviation over the seeds."""
    means = {"accuracy": 2, "codes": 0, "num_bytes": 0, "gzip_bytes": 0}
    heads = ("variant", "epochs", "samples", "seeds", "LiteRT %", "codes", "bytes", "gzip")
    cells = summary(rows, ("variant", "epochs", "train_samples"), means)
    return render_table("ResNet-8, CIFAR-10", heads, cells)


def define_flags() -> None:
    flags.DEFINE_string("start", None, "A trained ResNet-8 as a .keras file.", required=True)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one run each.")
    flags.DEFINE_list("clusters", ["32", "16"], "Numbers of clusters.")
    flags.DEFINE_string("init", "optimal", "How centroids start.")
    flags.DEFINE_integer("epochs", 3, "Further epochs of every variant.", 1)
    flags.DEFINE_float("learning_rate", 3e-4, "Start of the cosine.", 0.0)
    flags.DEFINE_bool("tfmot", True, "Whether tfmot runs beside it.")
    flags.DEFINE_integer("train_samples", 0, "Training samples; 0 for all.", 0)
    flags.DEFINE_string("data_dir", None, "Folder of cifar10*.npz; default $TFCOMPRESS_DATA.")
    flags.DEFINE_string("output", "outputs", "Folder of results and files.")


def main(argv) -> None:
    del argv
    settings = flags.FLAGS
    folder = pathlib.Path(settings.output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    (x, y), test = datasets.load("cifar10", settings.data_dir)
    limit = settings.train_samples or len(x)
    results = Results(folder / "cluster.csv", KEY)
    start = keras.models.load_model(settings.start, compile=False)
    with tfc.shared_converter():
        run(settings, results, ((x[:limit], y[:limit]), test), start)
    print(table(results.rows))


if __name__ == "__main__":
    define_flags()
    app.run(main)
