"""Quantization from start to file: a float model, int8 by calibration, int8 by training.

Per seed it trains a float model (or starts from `--start`), then compares, all measured at the
last epoch on the whole test set:

| variant                 | what it is                                                         |
|-------------------------|--------------------------------------------------------------------|
| `float`                 | the float model                                                    |
| `float_control`         | the float model after the same extra epochs as the quantized one   |
| `int8_calibration`      | the float model, quantized by calibration alone                    |
| `int8_training`         | quantized, then trained for the extra epochs                       |

with the accuracy of the Keras model, the accuracy of the `.tflite` run by LiteRT, bytes, gzip
bytes, agreement, and latency as a ratio to the float file in interleaved runs. Rows are added to
`quantize.csv` in `--output_dir`; started again, the recipe skips what is there.

    python -m recipes.quantize --dataset=digits
    python -m recipes.quantize --dataset=cifar10 --data_dir=~/data --start=resnet8.keras
"""

from __future__ import annotations

import pathlib

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from recipes import models, resuming
from recipes.batches import AUGMENTATIONS, batches
from recipes.kept import kept_model
from recipes.models import with_fused_batch_norm
from recipes.results import Results, summary
from tfcompress.export import Runner, compare_latency
from tfcompress.model import render_table
from tfcompress.tools import datasets

# Data set → (architecture, float epochs, extra epochs).
DEFAULTS = {
    "digits": ("digits_cnn", 15, 4),
    "mnist": ("small_cnn", 5, 1),
    "fashion_mnist": ("small_cnn", 8, 1),
    "cifar10": ("resnet8", 30, 2),
}


class Experiment:
    """One data set, one architecture, several seeds."""

    def __init__(self, settings):
        self.settings = settings
        self.name = settings.dataset
        self.train, self.test = datasets.load(self.name, settings.data_dir)
        architecture, epochs, extra = DEFAULTS.get(self.name, ("small_cnn", 10, 2))
        self.architecture = settings.model or architecture
        self.epochs = epochs if settings.epochs is None else settings.epochs
        self.extra_epochs = extra if settings.extra_epochs is None else settings.extra_epochs
        self.folder = pathlib.Path(settings.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = Results(
            self.folder / "quantize.csv", ("dataset", "model", "variant", "seed", "extra_epochs")
        )

    def fit(self, model, epochs: int, rate: float, seed: int, callbacks=()) -> None:
        steps = epochs * (len(self.train[0]) // self.settings.batch_size)
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])
        augment = AUGMENTATIONS.get(self.name)
        data = batches(*self.train, seed, augment, self.settings.batch_size)
        resuming.fit(model, data, epochs=epochs, verbose=2, callbacks=callbacks)

    def float_model(self, seed: int) -> keras.Model:
        """The float model of a seed, trained once and kept."""
        if self.settings.start:
            return keras.models.load_model(self.settings.start, compile=False)
        path = self.folder / f"{self.name}_{self.architecture}_{seed}.keras"

        def train() -> keras.Model:
            classes = int(self.train[1].max()) + 1
            model = models.build(self.architecture, self.train[0].shape[1:], classes)
            model = with_fused_batch_norm(model)
            self.fit(model, self.epochs, self.settings.learning_rate, seed)
            return tfc.strip(model)

        return kept_model(path, train, seed)

    def run(self, seed: int) -> None:
        if all(self.has(v, seed) for v in ("float", "float_control")) and all(
            self.has(v, seed) for v in ("int8_calibration", "int8_training")
        ):
            return
        model = self.float_model(seed)
        self.measure("float", seed, lambda: model)
        self.measure("float_control", seed, lambda: self.finetuned(model, seed))
        self.measure("int8_calibration", seed, lambda: self.quantized(model, seed))
        self.measure("int8_training", seed, lambda: self.trained(model, seed))

    def calibration_data(self, seed: int) -> np.ndarray:
        count = min(512, len(self.train[0]))
        chosen = np.random.default_rng(seed).choice(len(self.train[0]), count, replace=False)
        return self.train[0][chosen]

    def quantized(self, model, seed: int) -> keras.Model:
        return tfc.quantize(model, calibration_data=self.calibration_data(seed))

    def finetuned(self, model, seed: int) -> keras.Model:
        keras.utils.set_random_seed(1000 + seed)
        copy = with_fused_batch_norm(model)
        self.fit(copy, self.extra_epochs, self.settings.extra_learning_rate, seed)
        return tfc.strip(copy)

    def trained(self, model, seed: int) -> keras.Model:
        keras.utils.set_random_seed(1000 + seed)
        quantized = self.quantized(model, seed)
        steps = self.extra_epochs * (len(self.train[0]) // self.settings.batch_size)
        schedule = tfc.callbacks.QuantizationSchedule(
            freeze_ranges_step=steps * 3 // 4, freeze_batch_norm_step=steps // 2
        )
        rate = self.settings.extra_learning_rate
        self.fit(quantized, self.extra_epochs, rate, seed, [schedule])
        return quantized

    def has(self, variant: str, seed: int) -> bool:
        return self.results.has(
            dataset=self.name,
            model=self.architecture,
            variant=variant,
            seed=seed,
            extra_epochs=self.extra_epochs,
        )

    def measure(self, variant: str, seed: int, make) -> None:
        if self.has(variant, seed):
            return
        model = make()
        x, y = self.test
        path = self.folder / f"{self.name}_{self.architecture}_{variant}.tflite"
        report = tfc.export_tflite(model, path, verify_data=x[:1000], allow_float=True)
        outputs = Runner(path).predict(x)
        logits = next(iter(outputs.values()))
        keras_accuracy = np.mean(model.predict(x, verbose=0, batch_size=500).argmax(-1) == y)
        parity = report.parity["serving_default"][0]
        self.results.add(
            dataset=self.name,
            model=self.architecture,
            variant=variant,
            seed=seed,
            extra_epochs=self.extra_epochs,
            keras_accuracy=f"{100 * keras_accuracy:.2f}",
            tflite_accuracy=f"{100 * np.mean(logits.argmax(-1) == y):.2f}",
            num_bytes=report.num_bytes,
            gzip_bytes=report.gzip_bytes,
            equal_steps=f"{100 * parity.equal:.2f}",
            top1_agreement=f"{100 * parity.top1:.2f}",
            latency_ratio=f"{self.latency_ratio(path, variant):.3f}",
        )

    def latency_ratio(self, path: pathlib.Path, variant: str) -> float:
        """Median time of the file over the float file's, interleaved, one thread."""
        reference = self.folder / f"{self.name}_{self.architecture}_float.tflite"
        if variant == "float" or not reference.exists():
            return 1.0
        files = {"float": reference, "this": path}
        return compare_latency(files, num_threads=1).ratios["this"].median

    def table(self) -> str:
        mine = [row for row in self.results.rows if row["dataset"] == self.name]
        columns = {
            "Keras %": ("keras_accuracy", 2),
            "LiteRT %": ("tflite_accuracy", 2),
            "bytes": ("num_bytes", 0),
            "gzip": ("gzip_bytes", 0),
            "equal %": ("equal_steps", 2),
            "top-1 %": ("top1_agreement", 2),
            "time": ("latency_ratio", 3),
        }
        title = f"{self.name}, {self.architecture}, {self.extra_epochs} extra epochs"
        cells = summary(mine, ("variant",), dict(columns.values()))
        return render_table(title, ("variant", "seeds", *columns), cells)


def define_flags() -> None:
    flags.DEFINE_string("dataset", "digits", "digits, mnist, fashion_mnist, cifar10 or PATH.npz.")
    flags.DEFINE_string("data_dir", None, "Folder of the data sets; default $TFCOMPRESS_DATA.")
    flags.DEFINE_string("model", None, "Architecture of recipes/models.py; default by data set.")
    flags.DEFINE_string("start", None, "A trained .keras model to start from.")
    flags.DEFINE_integer("epochs", None, "Epochs of the float model; default by data set.")
    flags.DEFINE_integer("extra_epochs", None, "Epochs of quantized training and of its control.")
    flags.DEFINE_float("learning_rate", 2e-3, "Start of the cosine for the float model.")
    flags.DEFINE_float("extra_learning_rate", 3e-4, "Start of the cosine for the extra epochs.")
    flags.DEFINE_integer("batch_size", 128, "Samples to a step.")
    flags.DEFINE_list("seeds", ["0"], "Seeds, one run each.")
    flags.DEFINE_integer("seed", None, "One seed; the same as --seeds with one.")
    flags.DEFINE_string("output_dir", "outputs", "Where models, files and results go.")


def main(argv) -> None:
    del argv
    settings = flags.FLAGS
    experiment = Experiment(settings)
    seeds = [settings.seed] if settings.seed is not None else [int(s) for s in settings.seeds]
    with tfc.shared_converter():
        for seed in seeds:
            experiment.run(seed)
    print(experiment.table())


if __name__ == "__main__":
    define_flags()
    app.run(main)
