"""Low rank: a small VGG at half its multiply-accumulates, and big networks rebuilt.

`--experiment=fashion`: a VGG of six convolutions is trained on Fashion-MNIST, factorized to
`--target_macs` by three sets of methods, with and without real inputs, and trained on; the control
is trained on for as long. Rows go to `factorize.csv`; started again, the recipe skips what is
there.

| variant       | what it is                                                               |
|---------------|--------------------------------------------------------------------------|
| `float`       | the control                                                              |
| `best`        | SVD, spatial and Tucker-2, whatever is best for each layer               |
| `spatial+svd` | without Tucker-2                                                         |
| `weighted`    | the same, kernels approximated on the inputs that they see               |

`--experiment=rebuild`: VGG16 and MobileNetV1 with random weights at half their multiply-
accumulates: forward, a train step, and export.

    python -m recipes.factorize --experiment=fashion --data_dir=~/data
    python -m recipes.factorize --experiment=rebuild

On one core the first takes about 40 minutes for `float` and `weighted` of one seed, the second
about 10 minutes and 20 GB of memory.
"""

from __future__ import annotations

import pathlib
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

import tfcompress as tfc
from recipes import resuming
from recipes.batches import batches
from recipes.kept import kept_model
from recipes.models import with_fused_batch_norm
from recipes.results import Results, summary
from tfcompress.factorization import factorize, plan_factorization
from tfcompress.model import render_table
from tfcompress.tools import datasets

KEY = ("variant", "seed", "target_macs", "epochs", "train_samples")
_ALL, _EXACT = ("svd", "spatial", "tucker2"), ("svd", "spatial")
#: Variant → methods, and whether real inputs weight the error.
VARIANTS = {"best": (_ALL, False), "spatial+svd": (_EXACT, False), "weighted": (_EXACT, True)}


def small_vgg(num_classes: int = 10) -> keras.Model:
    """Three blocks of two 3×3 convolutions with batch norm, of 32, 64 and 96 filters."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 255)(inputs)
    for block, filters in enumerate((32, 64, 96)):
        for i in range(2):
            name = f"conv{block}_{i}"
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x)
    x = layers.Dropout(0.4)(layers.Flatten()(x))
    x = layers.Dropout(0.4)(layers.Dense(128, activation="relu", name="hidden")(x))
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="small_vgg")


def fit(model, x, y, seed: int, epochs: int, rate: float) -> keras.Model:
    """A trained copy: Adam with cosine decay on flipped images."""
    fast = with_fused_batch_norm(model)
    data = batches(x, y, seed, tf.image.random_flip_left_right)
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * len(data))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fast.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    resuming.fit(fast, data, epochs=epochs, verbose=2)
    return tfc.strip(fast)


def accuracy(model, data) -> float:
    logits = model.predict(data[0], batch_size=500, verbose=0)
    return 100 * float(np.mean(logits.argmax(-1) == data[1]))


def fashion(settings, folder: pathlib.Path) -> str:
    (x, y), test = datasets.load("fashion_mnist", settings.data_dir)
    limit = settings.train_samples or len(x)
    x, y = x[:limit], y[:limit]
    results = Results(folder / "factorize.csv", KEY)
    epochs, extra = settings.epochs, settings.extra_epochs
    for seed in map(int, settings.seeds):
        common = (seed, settings.target_macs, f"{epochs}+{extra}", limit)
        keys = {v: dict(zip(KEY, (v, *common), strict=True)) for v in settings.variants}
        if all(results.has(**key) for key in keys.values()):
            continue
        path = folder / f"small_vgg_{epochs}_{limit}_{seed}.keras"

        def train(seed=seed) -> keras.Model:
            return fit(small_vgg(), x, y, seed, epochs, 2e-3)

        start = kept_model(path, train, seed)
        for variant, key in keys.items():
            if results.has(**key):
                continue
            keras.utils.set_random_seed(1000 + seed)
            model = keras.models.load_model(path, compile=False)
            if variant != "float":
                methods, weighted = VARIANTS[variant]
                seen = x[np.random.default_rng(seed).choice(limit, min(512, limit), replace=False)]
                options = {"methods": methods, "data": seen if weighted else None}
                print(plan_factorization(start, target_macs=settings.target_macs, **options))
                model = factorize(start, target_macs=settings.target_macs, **options)
            before = accuracy(model, test)
            model = fit(model, x, y, seed, extra, settings.extra_learning_rate)
            results.add(
                **key,
                macs=tfc.count_macs(model),
                parameters=model.count_params(),
                before=f"{before:.2f}",
                after=f"{accuracy(model, test):.2f}",
            )
    return table(results.rows)


def table(rows) -> str:
    by = ("variant", "target_macs", "epochs", "train_samples")
    means = {"macs": 0, "parameters": 0, "before": 2, "after": 2}
    heads = ("variant", "target", "epochs", "samples", "seeds", "MACs", "parameters")
    return render_table("Fashion-MNIST", (*heads, "before %", "after %"), summary(rows, by, means))


def rebuild(settings, folder: pathlib.Path) -> str:
    """Forward, a train step and export of big networks at a share of their MACs."""
    cells = []
    for name, make in (
        ("VGG16", keras.applications.VGG16),
        ("MobileNetV1", keras.applications.MobileNet),
    ):
        model = make(weights=None, classes=10, input_shape=(224, 224, 3))
        start = time.time()
        small = factorize(model, target_macs=settings.target_macs)
        seconds = time.time() - start
        sizes = tfc.count_macs(model), tfc.count_macs(small), model.count_params()
        # A VGG16 takes half a gigabyte, and its conversion eight.
        del model
        x = np.random.default_rng(0).uniform(0, 1, (2, 224, 224, 3)).astype(np.float32)
        shape = small.predict(x, verbose=0).shape
        small.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
        loss = float(small.train_on_batch(x, np.array([1, 2])))
        report = tfc.export_tflite(small, folder / f"{name}.tflite", allow_float=True)
        cells.append(
            (
                name,
                *sizes,
                small.count_params(),
                str(shape),
                loss,
                report.num_bytes,
                f"{seconds:.0f}",
            )
        )
        keras.backend.clear_session()
    heads = ("network", "MACs", "MACs after", "parameters", "after", "output", "loss", "bytes", "s")
    return render_table("Rebuilt", heads, cells)


def define_flags() -> None:
    flags.DEFINE_enum("experiment", "fashion", ["fashion", "rebuild"], "What to run.")
    flags.DEFINE_float("target_macs", 0.5, "Share of the multiply-accumulates to keep.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one run each.")
    flags.DEFINE_list("variants", ["float", *VARIANTS], "Rows of the table.")
    flags.DEFINE_integer("epochs", 8, "Epochs of the float model.", 1)
    flags.DEFINE_integer("extra_epochs", 2, "Further epochs of every variant.", 1)
    flags.DEFINE_float("extra_learning_rate", 5e-4, "Start of the cosine for them.", 0.0)
    flags.DEFINE_integer("train_samples", 0, "Training samples; 0 for all.", 0)
    flags.DEFINE_string("data_dir", None, "Folder of fashion_mnist.npz.")
    flags.DEFINE_string("output", "outputs", "Folder of results, models and files.")


def main(argv) -> None:
    del argv
    settings = flags.FLAGS
    folder = pathlib.Path(settings.output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    print({"fashion": fashion, "rebuild": rebuild}[settings.experiment](settings, folder))


if __name__ == "__main__":
    define_flags()
    app.run(main)
