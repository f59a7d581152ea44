"""Structured pruning on real data: channels removed, then trained on. Three experiments.

| --experiment | what it shows                                                            |
|--------------|--------------------------------------------------------------------------|
| `resnet8`    | a trained ResNet-8 on CIFAR-10 at half its MACs, beside three controls   |
| `criteria`   | a CNN on Fashion-MNIST at 2×, 4× and 8× fewer MACs, by every criterion   |
| `slimming`   | L1 on batch-norm scales during `fit`, then one global threshold          |

Variants of `resnet8`, all of half the MACs; `n` epochs are those of `--epochs`:

| variant              | what it is                                                         |
|----------------------|--------------------------------------------------------------------|
| `dense`              | the given model                                                    |
| `shrunk`             | channels of the given model removed, then trained for n epochs     |
| `masked`             | channels masked during the first half of n epochs, removed after n |
| `scratch`            | the architecture of `shrunk` with fresh weights, n epochs          |
| `uniform_scratch`    | every layer narrowed alike, fresh weights, n epochs                |
| `scratch_long`       | as `scratch`, with the dense model's 30 epochs and the n           |

The column `target` is the fraction of MACs to keep; for `slimming`, that of batch-normed channels.

Each finished run adds a row to `shrink.csv` in `--output`; started again, the recipe skips what is
there. Accuracies are those of the last epoch on the whole test set.

    python -m recipes.shrink --experiment=resnet8 --data_dir=~/data --checkpoint=resnet8.keras
    python -m recipes.shrink --experiment=criteria --data_dir=~/data
    python -m recipes.shrink --experiment=slimming --data_dir=~/data
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags

from recipes import models, resuming
from recipes.batches import AUGMENTATIONS, batches
from recipes.kept import kept_model
from recipes.models import with_fused_batch_norm
from recipes.results import Results, summary
from tfcompress.model import count_macs, render_table, strip
from tfcompress.pruning import PolynomialDecay, Regularization, ScoringOptions
from tfcompress.pruning.structure import ChannelPruning, WidthOptions, shrink
from tfcompress.tools import datasets

#: Experiment → (data set, architecture, epochs of the dense model, epochs after).
EXPERIMENTS = {
    "resnet8": ("cifar10", "resnet8", 30, 8),
    "criteria": ("fashion_mnist", "small_cnn", 6, 2),
    "slimming": ("fashion_mnist", "small_cnn", 6, 2),
}
CRITERIA = (
    "magnitude",
    "l2",
    "batch_norm_scale",
    "geometric_median",
    "taylor",
    "fisher",
    "activation_mean",
    "activation_entropy",
    "apoz",
    "random",
)
#: Of `resnet8`, beside the dense model.
VARIANTS = ("shrunk", "masked", "scratch", "uniform_scratch", "scratch_long")
#: By how much `criteria` divides the MACs.
FACTORS = (2, 4, 8)
KEY = ("experiment", "variant", "seed", "epochs", "train_samples", "target")


def cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Run:
    """One call of the recipe."""

    def __init__(self, options):
        self.options = options
        self.experiment = options.experiment
        self.dataset, self.architecture, dense_epochs, epochs = EXPERIMENTS[self.experiment]
        self.dense_epochs = options.dense_epochs or dense_epochs
        self.epochs = options.epochs or epochs
        (x, y), self.test = datasets.load(self.dataset, options.data_dir)
        samples = options.train_samples or len(x)
        self.train = x[:samples], y[:samples]
        self.folder = pathlib.Path(options.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = Results(self.folder / "shrink.csv", KEY)

    # ---- parts ----------------------------------------------------------------------------------

    def steps(self, epochs: int) -> int:
        return epochs * (len(self.train[0]) // self.options.batch_size)

    def fit(self, model, epochs: int, seed: int, rate: float, callbacks=()) -> keras.Model:
        """Trains a copy with the fused batch norm, and returns it as plain Keras."""
        keras.utils.set_random_seed(seed)
        fast = with_fused_batch_norm(model)
        decay = keras.optimizers.schedules.CosineDecay(rate, self.steps(epochs))
        fast.compile(keras.optimizers.Adam(decay), cross_entropy(), metrics=["accuracy"])
        augment = AUGMENTATIONS.get(self.dataset)
        data = batches(*self.train, seed, augment, self.options.batch_size)
        resuming.fit(fast, data, epochs=epochs, verbose=2, callbacks=callbacks)
        return strip(fast)

    def dense(self) -> keras.Model:
        """The trained model: the file given, or one trained here once."""
        if self.options.checkpoint:
            return keras.models.load_model(self.options.checkpoint, compile=False)

        def train() -> keras.Model:
            model = models.build(self.architecture, self.train[0].shape[1:], 10)
            return self.fit(model, self.dense_epochs, 0, self.options.dense_rate)

        name = f"{self.architecture}_{self.dense_epochs}_{len(self.train[0])}.keras"
        return kept_model(self.folder / name, train)

    def shrunk(self, model, target: float, criterion: str, seed: int = 0, **options) -> keras.Model:
        return shrink(
            model,
            criterion=criterion,
            target_macs=target,
            data=self.train,
            scoring=ScoringOptions(
                num_batches=8, loss=lambda m, x, y, _: cross_entropy()(y, m(x, training=True))
            ),
            seed=seed,
            **options,
        )

    def tuned(self, model, seed: int) -> keras.Model:
        return self.fit(model, self.epochs, seed, self.options.learning_rate)

    def from_scratch(self, model, epochs: int, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return self.fit(keras.models.clone_model(model), epochs, seed, self.options.scratch_rate)

    def measure(
        self,
        variant: str,
        seed: int,
        target: float,
        make: Callable[[], keras.Model],
        reference: keras.Model,
    ) -> None:
        """Makes a model unless its row is there, and adds the row."""
        key = {
            "experiment": self.experiment,
            "variant": variant,
            "seed": seed,
            "epochs": self.epochs,
            "train_samples": len(self.train[0]),
            "target": target,
        }
        if self.results.has(**key):
            return
        start = time.time()
        model = make()
        x, y = self.test
        accuracy = np.mean(model.predict(x, batch_size=500, verbose=0).argmax(-1) == y)
        self.results.add(
            **key,
            accuracy=f"{100 * accuracy:.2f}",
            macs=count_macs(model),
            macs_left=f"{count_macs(model) / count_macs(reference):.4f}",
            parameters=model.count_params(),
            seconds=round(time.time() - start),
        )
        print(self.results.rows[-1], flush=True)

    # ---- experiments ----------------------------------------------------------------------------

    def resnet8(self) -> None:
        dense, target = self.dense(), self.options.target
        small = self.shrunk(dense, target, self.options.criterion)
        uniform = WidthOptions(ranking="uniform")
        narrow = self.shrunk(dense, target, "magnitude", widths=uniform, round_to=1)
        print(small.shrink_report, narrow.shrink_report, sep="\n")
        self.measure("dense", 0, 1.0, lambda: dense, dense)
        for seed in self.seeds:
            makers = (
                ("shrunk", lambda s=seed: self.tuned(small, s)),
                ("masked", lambda s=seed: self.masked(dense, s)),
                ("scratch", lambda s=seed: self.from_scratch(small, self.epochs, s)),
                ("uniform_scratch", lambda s=seed: self.from_scratch(narrow, self.epochs, s)),
            )
            for variant, make in makers:
                if variant in self.options.variants:
                    self.measure(variant, seed, target, make, dense)
        if "scratch_long" in self.options.variants:
            long, seed = self.dense_epochs + self.epochs, self.seeds[0]
            make = lambda: self.from_scratch(small, long, seed)  # noqa: E731
            self.measure("scratch_long", seed, target, make, dense)

    def masked(self, dense: keras.Model, seed: int) -> keras.Model:
        """Masks grow over the first half of the epochs; what is masked then goes."""
        end = self.steps(self.epochs) // 2
        schedule = PolynomialDecay(0.0, 1.0 - self.options.target, 0, end, frequency=50)
        masks = ChannelPruning(schedule, criterion=self.options.criterion, data=self.train)
        rate = self.options.learning_rate
        return shrink(self.fit(dense, self.epochs, seed, rate, [masks]))

    def criteria(self) -> None:
        dense, seed = self.dense(), self.seeds[0]
        self.measure("dense", 0, 1.0, lambda: dense, dense)
        for factor in FACTORS:
            for criterion in self.options.criteria or CRITERIA:

                def make(target=1 / factor, criterion=criterion):
                    return self.tuned(self.shrunk(dense, target, criterion, seed), seed)

                self.measure(criterion, seed, round(1 / factor, 4), make, dense)

    def slimming(self) -> None:
        """With and without the penalty: the same share of channels cut by one threshold on |γ|."""
        for seed in self.seeds:
            keras.utils.set_random_seed(seed)
            start = models.build(self.architecture, self.train[0].shape[1:], 10)
            rate, epochs = self.options.dense_rate, self.dense_epochs
            wanted = [
                (name, strength)
                for name, strength in (("penalty", self.options.strength), ("no penalty", 0.0))
                if not self._has_slimming(name, seed)
            ]
            for name, strength in wanted:
                penalty = [Regularization(batch_norm_scale=strength)] if strength else []
                trained = self.fit(start, epochs, seed, rate, penalty)
                limit = self.threshold(trained)
                print(f"{name}: global threshold {limit:.4g} on |γ|", flush=True)
                raw = WidthOptions(normalization=None)
                given = {"criterion": "batch_norm_scale", "widths": raw}
                small = shrink(trained, threshold=limit, **given)
                print(small.shrink_report)
                target = round(1 - self.options.cut, 4)
                self.measure(f"{name}, trained", seed, target, lambda m=trained: m, trained)
                self.measure(f"{name}, cut", seed, target, lambda m=small: m, trained)
                make = lambda m=small, s=seed: self.tuned(m, s)  # noqa: E731
                self.measure(f"{name}, tuned", seed, target, make, trained)

    def threshold(self, model: keras.Model) -> float:
        """The |γ| below which `--cut` of all channels lie."""
        norms = [o for o in model.layers if isinstance(o, keras.layers.BatchNormalization)]
        scales = np.concatenate([np.abs(np.asarray(norm.gamma)) for norm in norms])
        return float(np.quantile(scales, self.options.cut))

    def _has_slimming(self, name: str, seed: int) -> bool:
        return self.results.has(
            experiment=self.experiment,
            variant=f"{name}, tuned",
            seed=seed,
            epochs=self.epochs,
            train_samples=len(self.train[0]),
            target=round(1 - self.options.cut, 4),
        )

    @property
    def seeds(self) -> list[int]:
        return [int(seed) for seed in self.options.seeds]

    def table(self) -> str:
        mine = [row for row in self.results.rows if row["experiment"] == self.experiment]
        means = {"accuracy": 2, "macs_left": 3, "parameters": 0}
        columns = ("variant", "target", "seeds", "accuracy %", "MACs left", "parameters")
        cells = summary(mine, ("variant", "target"), means)
        return render_table(f"{self.experiment}, {self.epochs} epochs", columns, cells)


def define_flags() -> None:
    flags.DEFINE_enum("experiment", "resnet8", list(EXPERIMENTS), "What to run.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds; `criteria` runs the first.")
    flags.DEFINE_integer("epochs", 0, "Epochs after shrinking; 0 for the experiment's own.", 0)
    flags.DEFINE_integer("dense_epochs", 0, "Epochs of the dense model; 0 for its own.", 0)
    flags.DEFINE_float("target", 0.5, "Fraction of MACs to keep (`resnet8`).", 0.0, 1.0)
    flags.DEFINE_float("cut", 0.4, "Fraction of channels below the threshold (`slimming`).", 0, 1)
    flags.DEFINE_float("strength", 1e-3, "Of the L1 penalty on batch-norm scales.", 0.0)
    flags.DEFINE_string("criterion", "magnitude", "For `resnet8`.")
    flags.DEFINE_list("variants", list(VARIANTS), "For `resnet8`.")
    flags.DEFINE_list("criteria", [], "For `criteria`; empty for all.")
    flags.DEFINE_string("checkpoint", None, "A trained model; by default one is trained.")
    flags.DEFINE_string("data_dir", None, "Folder of the data sets; default $TFCOMPRESS_DATA.")
    flags.DEFINE_string("output", "outputs/shrink", "Folder for rows and models.")
    flags.DEFINE_integer("train_samples", 0, "Training samples; 0 for all.", 0)
    flags.DEFINE_integer("batch_size", 128, "Samples to a step.", 1)
    flags.DEFINE_float("learning_rate", 2e-3, "Start of the cosine after shrinking.", 0.0)
    flags.DEFINE_float("scratch_rate", 3e-3, "Start of the cosine from fresh weights.", 0.0)
    flags.DEFINE_float("dense_rate", 3e-3, "Start of the cosine for the dense model.", 0.0)


def main(argv: list[str]) -> None:
    del argv
    run = Run(flags.FLAGS)
    getattr(run, run.experiment)()
    print(run.table())


if __name__ == "__main__":
    define_flags()
    app.run(main)
