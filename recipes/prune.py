"""Pruning on real data: five experiments, each resumable.

| --experiment | what it shows                                                        | two cores |
|--------------|----------------------------------------------------------------------|-----------|
| `lenet300`   | LeNet-300-100 on MNIST at 91.7 % and 98 %, beside the dense control  | 15 min    |
| `lenet5`     | LeNet-5 on MNIST at 92 %, beside the dense control                   | 60 min    |
| `sweep`      | every method on LeNet-300-100 at 80, 90, 95 and 98 %                 | 120 min   |
| `resnet8`    | a trained ResNet-8 on CIFAR-10 at 50 % and 80 %, beside tfmot        | 60 min    |
| `guided`     | `MetricGuided` with three allowed drops                              | 10 min    |
| `threshold`  | train with L1, cut by standard deviations, finetune                  | 5 min     |

Each finished run adds a row to `prune.csv` in `--output`; started again, the recipe skips what is
there. Errors are those of the last epoch. The table, mean ± deviation over the seeds, is made from
the rows and written beside them. `sweep` runs the first seed for the whole grid, and the others at
95 % and 98 %. Digits are moved by up to a pixel in training.

Run from the project's root:

    python -m recipes.prune --experiment=sweep --data_dir=~/data --output=recipes/results
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable

import keras
from absl import app, flags

from recipes import models, resuming
from recipes.batches import augmented, shifted
from recipes.kept import kept_model
from recipes.prune_methods import METHODS, Budget, callbacks
from recipes.prune_results import KEY, plot, table
from recipes.prune_tfmot import in_subprocess
from recipes.results import Results
from tfcompress.model import compressible_kernels
from tfcompress.pruning import MetricGuided, PolynomialDecay, Pruning, ThresholdPruning
from tfcompress.tools import datasets

#: Learning rate for batches of 256 digits.
_DIGITS_RATE = 3e-3


@dataclasses.dataclass
class Run:
    """The settings of one call of the recipe."""

    experiment: str
    seeds: list[int]
    epochs: int
    data: tuple
    results: Results
    options: flags.FlagValues

    def measure(
        self, name: str, method: str, sparsity: float, seed: int, train: Callable[[], tuple]
    ) -> None:
        """Trains unless the row is there, and adds it.

        Args:
            name: The model's name.
            method: The method's name in the table.
            sparsity: What was asked for.
            seed: The run's seed.
            train: Returns `(error in per cent, fraction of zeros, drop of the metric or NaN)`.
        """
        setting = (method, sparsity, self.epochs, len(self.data[0][0]))
        key = dict(zip(KEY, (self.experiment, *setting, seed), strict=True))
        if self.results.has(**key):
            return
        keras.utils.set_random_seed(seed)
        start = time.time()
        error, zeros, drop = train()
        seconds = round(time.time() - start)
        self.results.add(
            **key,
            model=name,
            reached=round(zeros, 6),
            error=round(error, 4),
            drop=drop,
            seconds=seconds,
        )
        print(
            f"{self.experiment}: {method} at {100 * sparsity:g} %, seed {seed}: "
            f"error {error:.2f} %, zeros {100 * zeros:.2f} %, {seconds} s",
            flush=True,
        )
        keras.backend.clear_session()


def cross_entropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model: keras.Model, steps: int, rate: float = 1e-3) -> keras.Model:
    """Adam with cosine decay."""
    decay = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(
        keras.optimizers.Adam(decay), cross_entropy(), metrics=["accuracy"], steps_per_execution=8
    )
    return model


def outcome(model: keras.Model, test: tuple) -> tuple[float, float, float]:
    """Test error in per cent, fraction of zeros in the kernels, no drop."""
    logits = model.predict(test[0], batch_size=500, verbose=0)
    kernels = [k.variable.numpy() for k in compressible_kernels(model)]
    zeros = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
    return 100 * float((logits.argmax(-1) != test[1]).mean()), float(zeros), float("nan")


def from_scratch(run: Run, name: str, method: str, sparsity: float, seed: int) -> tuple:
    """Trains one model with one method."""
    (x, y), test = run.data
    batches = shifted(x, y, seed)
    total = run.epochs * len(batches)
    model = compiled(models.build(name, x.shape[1:], 10), total, _DIGITS_RATE)
    budget = Budget(sparsity, total, len(batches), (x, y), seed)
    options = {"epochs": run.epochs, "verbose": 0}
    resuming.fit(model, batches, callbacks=callbacks(method, budget), **options)
    return outcome(model, test)


def grid(run: Run, name: str, methods: list[str], sparsities: list[float], seeds: list[int]):
    """All methods, and the dense control once per seed."""
    for seed in seeds:
        for method in methods:
            for sparsity in [0.0] if method == "dense" else sparsities:
                run.measure(
                    name,
                    method,
                    sparsity,
                    seed,
                    lambda m=method, p=sparsity, s=seed: from_scratch(run, name, m, p, s),
                )


def lenet300(run: Run) -> None:
    grid(
        run, "lenet300", ["dense", "magnitude"], run.options.sparsities or [0.917, 0.98], run.seeds
    )


def lenet5(run: Run) -> None:
    grid(run, "lenet5", ["dense", "magnitude"], run.options.sparsities or [0.92], run.seeds)


def sweep(run: Run) -> None:
    methods = run.options.methods or list(METHODS)
    sparsities = run.options.sparsities or [0.8, 0.9, 0.95, 0.98]
    grid(run, "lenet300", methods, sparsities, run.seeds[:1])
    grid(run, "lenet300", methods, [s for s in sparsities if s >= 0.95], run.seeds[1:])


def resnet8(run: Run) -> None:
    (x, y), (x_test, y_test) = run.data
    weights = _checkpoint(run)
    rate = run.options.learning_rate

    def ours(sparsity, seed, scope):
        model = keras.saving.load_model(weights, compile=False)
        batches = augmented(x, y, seed)
        steps = run.epochs * len(batches)
        compiled(model, steps, rate)
        pruning = []
        if sparsity:
            frequency = max(d for d in range(1, 101) if int(0.7 * steps) % d == 0)
            decay = PolynomialDecay(0.0, sparsity, 0, int(0.7 * steps), frequency=frequency)
            pruning = [Pruning(decay, scope=scope, verbose=0)]
        resuming.fit(model, batches, epochs=run.epochs, verbose=2, callbacks=pruning)
        return outcome(model, (x_test, y_test))

    def theirs(sparsity, seed):
        model = keras.saving.load_model(weights, compile=False)
        before, after, zeros = in_subprocess(model, run.data, sparsity, run.epochs, seed, rate)
        expected = outcome(model, (x_test, y_test))[0]
        if abs(before - expected) > 0.05:
            raise RuntimeError(f"tfmot began at {before:.2f} % error and not at {expected:.2f} %")
        return after, zeros, float("nan")

    methods = {
        "dense": lambda sparsity, seed: ours(0.0, seed, "layer"),
        "magnitude": lambda sparsity, seed: ours(sparsity, seed, "layer"),
        "magnitude, global": lambda sparsity, seed: ours(sparsity, seed, "global"),
        "tfmot": theirs,
    }
    sparsities = run.options.sparsities or [0.5, 0.8]
    for seed in run.seeds:
        for method in run.options.methods or methods:
            for sparsity in [0.0] if method == "dense" else sparsities:
                train = functools.partial(methods[method], sparsity, seed)
                run.measure("resnet8", method, sparsity, seed, train)


def guided(run: Run) -> None:
    (x, y), test = run.data
    held_out = len(x) // 6
    train, validation = (x[:-held_out], y[:-held_out]), (x[-held_out:], y[-held_out:])

    def search(max_drop, seed):
        model = models.build("lenet300", x.shape[1:], 10)
        model.compile(keras.optimizers.Adam(1e-3), cross_entropy(), metrics=["accuracy"])
        batches = shifted(*train, seed)
        # What the search may lose is measured against a trained model.
        options = {"validation_data": validation, "verbose": 0}
        resuming.fit(model, batches, epochs=max(1, run.epochs // 4), **options)
        before = model.evaluate(*validation, batch_size=500, verbose=0)[1]
        method = MetricGuided("val_accuracy", max_drop, baseline=before)
        pruning = Pruning(method, scope="global", verbose=0)
        resuming.fit(model, batches, epochs=run.epochs, callbacks=[pruning], **options)
        after = model.evaluate(*validation, batch_size=500, verbose=0)[1]
        error, zeros, _ = outcome(model, test)
        return error, zeros, before - after

    for seed in run.seeds:
        for drop in (0.005, 0.01, 0.02):
            run.measure(
                "lenet300", f"guided {drop}", 0.0, seed, lambda d=drop, s=seed: search(d, s)
            )


def threshold(run: Run) -> None:
    (x, y), test = run.data

    def cut(num_std, strengths, seed):
        batches = shifted(x, y, seed)
        total = run.epochs * len(batches)
        model = compiled(models.build("lenet300", x.shape[1:], 10), total, _DIGITS_RATE)
        pruning = ThresholdPruning(int(0.5 * total), num_std=num_std, **strengths, verbose=0)
        resuming.fit(model, batches, epochs=run.epochs, callbacks=[pruning], verbose=0)
        return outcome(model, test)

    for seed in run.seeds:
        for num_std in (0.5, 1.0, 1.5):
            for name, strengths in (
                ("L1", {"l1": 1e-5}),
                ("L2", {"l2": 1e-4}),
                ("proximal L1", {"l1": 1e-4, "proximal": True}),
            ):
                run.measure(
                    "lenet300",
                    f"{name}, cut at {num_std} deviations",
                    0.0,
                    seed,
                    lambda n=num_std, o=strengths, s=seed: cut(n, o, s),
                )


def _checkpoint(run: Run) -> str:
    """The trained ResNet-8: the file given, or one trained here once."""
    if run.options.checkpoint:
        return run.options.checkpoint
    epochs, (x, y) = run.options.train_epochs, run.data[0]

    def train() -> keras.Model:
        batches = augmented(x, y, seed=0)
        model = compiled(models.build("resnet8", (32, 32, 3), 10), epochs * len(batches), 3e-3)
        resuming.fit(model, batches, epochs=epochs, verbose=2)
        return model

    path = run.results.path.with_name(f"resnet8_{epochs}_{len(x)}.keras")
    kept_model(path, train)
    return str(path)


#: Experiment → (function, data set, epochs by default).
EXPERIMENTS = {
    "lenet300": (lenet300, "mnist", 40),
    "lenet5": (lenet5, "mnist", 15),
    "sweep": (sweep, "mnist", 30),
    "resnet8": (resnet8, "cifar10", 6),
    "guided": (guided, "mnist", 40),
    "threshold": (threshold, "mnist", 30),
}


def define_flags() -> None:
    flags.DEFINE_enum("experiment", "lenet300", list(EXPERIMENTS), "What to run.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    flags.DEFINE_integer("epochs", 0, "Epochs of a run; 0 for the experiment's own.", 0)
    flags.DEFINE_string("data_dir", None, "Folder with the data sets' .npz files.")
    flags.DEFINE_string("output", "outputs/prune", "Folder for rows, tables and plots.")
    flags.DEFINE_list("methods", [], "Methods of `sweep` or `resnet8`; empty for all.")
    flags.DEFINE_list("sparsities", [], "Sparsities; empty for the experiment's own.")
    flags.DEFINE_integer("train_samples", 0, "Training samples; 0 for all.", 0)
    flags.DEFINE_string("checkpoint", None, "A trained ResNet-8; by default one is trained.")
    flags.DEFINE_integer("train_epochs", 30, "Epochs of that training.", 1)
    flags.DEFINE_float("learning_rate", 1e-3, "Learning rate for `resnet8`.", 0.0)


def main(argv: list[str]) -> None:
    options = flags.FLAGS
    options.sparsities = [float(s) for s in options.sparsities]
    function, dataset, epochs = EXPERIMENTS[options.experiment]
    (x, y), test = datasets.load(dataset, options.data_dir)
    samples = options.train_samples or len(x)
    folder = pathlib.Path(options.output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(
        options.experiment,
        [int(seed) for seed in options.seeds],
        options.epochs or epochs,
        ((x[:samples], y[:samples]), test),
        Results(folder / "prune.csv", KEY),
        options,
    )
    function(run)
    rows = [row for row in run.results.rows if row["experiment"] == options.experiment]
    text = table(rows, f"python -m recipes.prune --experiment={options.experiment}")
    (folder / f"prune_{options.experiment}.md").write_text(text)
    if options.experiment == "sweep":
        plot(rows, folder / "prune_sweep.png")
    print(text)


if __name__ == "__main__":
    define_flags()
    app.run(main)
