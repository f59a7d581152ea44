"""Pruning and int8 together, two ways, on MNIST: what is zero in the file and what it costs.

| variant             | how it is trained                                                       |
|---------------------|-------------------------------------------------------------------------|
| `pruned`            | float, pruned gradually by magnitude, all kernels in one ranking        |
| `pruned, then int8` | that model quantized, and a tenth of its epochs of training more        |
| `in one fit`        | quantized from the start, pruned in the same `fit`                      |

Each row is measured on the exported file, run by LiteRT over the whole test set. `lost` counts
weights that a mask removed and the file does not hold as zero. Rows are added to `prune_int8.csv`
in `--output`; started again, the recipe skips what is there.

    python -m recipes.prune_int8 --network=lenet300 --data_dir=~/data --output=recipes/results
"""

from __future__ import annotations

import pathlib

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from recipes import models, resuming
from recipes.batches import shifted
from recipes.results import Results, summary
from tfcompress.export import Runner, inspect_tflite
from tfcompress.model import compressible_kernels, render_table
from tfcompress.pruning import PolynomialDecay, Pruning
from tfcompress.tools import datasets

KEY = ("network", "variant", "sparsity", "seed", "epochs", "train_samples")
VARIANTS = ("pruned", "pruned, then int8", "in one fit")
_RATE = 3e-3


def fit(model, data, epochs: int, rate: float, callbacks=()) -> None:
    """Adam with cosine decay on moved digits."""
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * len(data))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"], steps_per_execution=8)
    resuming.fit(model, data, epochs=epochs, verbose=0, callbacks=callbacks)


def pruning(sparsity: float, steps: int) -> Pruning:
    decay = PolynomialDecay(0.0, sparsity, int(0.15 * steps), int(0.7 * steps))
    return Pruning(decay, scope="global", verbose=0)


class Experiment:
    """One network at one sparsity."""

    def __init__(self, options: flags.FlagValues):
        self.network, self.sparsity = options.network, options.sparsity
        self.epochs = options.epochs
        (x, y), self.test = datasets.load("mnist", options.data_dir)
        limit = options.train_samples or len(x)
        self.x, self.y = x[:limit], y[:limit]
        self.folder = pathlib.Path(options.output).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = Results(self.folder / "prune_int8.csv", KEY)

    def key(self, variant: str, seed: int) -> dict:
        values = (self.network, variant, self.sparsity, seed, self.epochs, len(self.x))
        return dict(zip(KEY, values, strict=True))

    def run(self, seed: int) -> None:
        missing = [v for v in VARIANTS if not self.results.has(**self.key(v, seed))]
        if not missing:
            return
        data = shifted(self.x, self.y, seed)
        if set(missing) & set(VARIANTS[:2]):
            keras.utils.set_random_seed(seed)
            model = models.build(self.network, self.x.shape[1:], 10)
            fit(model, data, self.epochs, _RATE, [pruning(self.sparsity, self.epochs * len(data))])
            self.measure("pruned", seed, model)
            quantized = tfc.quantize(model, calibration_data=self.x[:1000])
            fit(quantized, data, max(1, self.epochs // 10), _RATE / 10)
            self.measure("pruned, then int8", seed, quantized, masks_of=model)
        if "in one fit" in missing:
            keras.utils.set_random_seed(seed)
            model = tfc.quantize(models.build(self.network, self.x.shape[1:], 10))
            steps = self.epochs * len(data)
            frozen = tfc.callbacks.QuantizationSchedule(freeze_ranges_step=3 * steps // 4)
            fit(model, data, self.epochs, _RATE, [pruning(self.sparsity, steps), frozen])
            self.measure("in one fit", seed, model)

    def measure(self, variant: str, seed: int, model, masks_of=None) -> None:
        if self.results.has(**self.key(variant, seed)):
            return
        x, y = self.test
        path = self.folder / f"{self.network}_{VARIANTS.index(variant)}.tflite"
        report = tfc.export_tflite(model, path, verify_data=x[:1000], allow_float=True)
        logits = next(iter(Runner(path).predict(x).values()))
        error = 100 * np.mean(model.predict(x, batch_size=500, verbose=0).argmax(-1) != y)
        kernels = compressible_kernels(masks_of or model)
        masked = {k.layer.name: int((k.variable.numpy() == 0).sum()) for k in kernels}
        # Looked up in the file itself; the networks have no two kernels of one size.
        stored = [t for t in inspect_tflite(path).tensors if t.is_constant and len(t.shape) > 1]
        zeros = {t.size: t.size - t.non_zeros for t in stored}
        sizes = {k.layer.name: k.variable.shape.num_elements() for k in kernels}
        self.results.add(
            **self.key(variant, seed),
            keras_error=f"{error:.2f}",
            litert_error=f"{100 * np.mean(logits.argmax(-1) != y):.2f}",
            masked=f"{sum(masked.values()) / sum(sizes.values()):.4f}",
            lost=sum(max(0, masked[name] - zeros[size]) for name, size in sizes.items()),
            rounded_to_zero=sum(layer.rounded_to_zero for layer in report.layers),
            equal_steps=f"{100 * report.agreement:.2f}",
            num_bytes=report.num_bytes,
            gzip_bytes=report.gzip_bytes,
            dense_gzip_bytes=report.dense_gzip_bytes or "",
        )

    def table(self) -> str:
        wanted = {name: str(value) for name, value in self.key("", 0).items()}
        del wanted["variant"], wanted["seed"]
        mine = [row for row in self.results.rows if wanted.items() <= row.items()]
        means = {"keras_error": 2, "litert_error": 2, "lost": 0, "rounded_to_zero": 0}
        heads = ("variant", "seeds", "Keras error %", "LiteRT error %", "lost", "rounded to 0")
        title = f"{self.network}, {self.sparsity:.1%} pruned, {self.epochs} epochs"
        cells = summary(mine, ("variant",), {**means, "gzip_bytes": 0})
        return render_table(title, (*heads, "gzip"), cells)


def define_flags() -> None:
    flags.DEFINE_enum("network", "lenet300", ["lenet300", "lenet5"], "Which one.")
    flags.DEFINE_float("sparsity", 0.917, "Fraction of zeros.", 0.0, 0.999)
    flags.DEFINE_integer("epochs", 20, "Epochs of pruning.", 1)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one run each.")
    flags.DEFINE_integer("train_samples", 0, "Training samples; 0 for all.", 0)
    flags.DEFINE_string("data_dir", None, "Folder of mnist.npz; default $TFCOMPRESS_DATA.")
    flags.DEFINE_string("output", "outputs", "Folder of results and files.")


def main(argv) -> None:
    del argv
    experiment = Experiment(flags.FLAGS)
    for seed in map(int, flags.FLAGS.seeds):
        experiment.run(seed)
    print(experiment.table())


if __name__ == "__main__":
    define_flags()
    app.run(main)
