"""Deep Compression on MNIST (Han et al. 2016, tables 1 to 4): prune, share weights, code.

Per network and seed: a float model; that model pruned gradually, all kernels in one ranking; the
pruned model clustered and trained on, at last with fixed assignments. What is measured is the
packed file: it is written, read back, and the model in it classifies the whole test set. Floats
that are left (biases, codebooks) are rounded to half precision first.

| stage    | what is in the file                                 | columns                         |
|----------|-----------------------------------------------------|---------------------------------|
| `float`  | the float model                                     | float32 bytes                   |
| `pruned` | half floats, relative index                         | fixed, Huffman, best            |
| `shared` | codebooks, codes, relative index                    | fixed, Huffman, best            |

`fixed` is without entropy coding, as "P + Q" in the paper; `Huffman` is its last step; `best` takes
ANS where it is shorter. All bytes of the file count, the architecture too. Rows are added to
`deep_compression.csv` in `--output`; started again, the recipe skips what is there.

    python -m recipes.deep_compression --network=lenet300 --data_dir=~/data
    python -m recipes.deep_compression --network=lenet5 --data_dir=~/data

On two cores the first takes about 25 minutes for three seeds, the second about 60.
"""

from __future__ import annotations

import dataclasses
import pathlib

import keras
import numpy as np
from absl import app, flags
from keras import layers

import tfcompress as tfc
from recipes import models, resuming
from recipes.batches import shifted
from recipes.kept import kept_model
from recipes.results import Results, summary
from tfcompress.model import render_table
from tfcompress.pruning import PolynomialDecay, Pruning
from tfcompress.sharing import Clustering, cluster, pack, unpack
from tfcompress.tools import datasets

KEY = ("network", "stage", "sparsity", "clusters", "seed", "epochs", "train_samples")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a network is trained and compressed with, unless flags say otherwise.

    Attributes:
        sparsities: Fractions of zeros that are tried.
        clusters: Values per kernel, zero included, of dense and of convolutional layers.
        epochs: Of the float model, of pruning, of sharing.
        goals: `(error in per cent, bytes)`: the paper's, and the further one.
    """

    sparsities: tuple[float, ...]
    clusters: tuple[int, int]
    epochs: tuple[int, int, int]
    goals: tuple[tuple[float, int], ...]


NETWORKS = {
    "lenet300": Settings((0.92, 0.95), (17, 17), (40, 40, 15), ((1.60, 27_000), (1.60, 20_000))),
    "lenet5": Settings((0.95, 0.97), (17, 33), (15, 15, 5), ((0.80, 44_000), (0.80, 25_000))),
}


def fit(model, data, epochs: int, rate: float, callbacks=()) -> None:
    """Adam with cosine decay on `data`, batches of moved digits."""
    steps = epochs * len(data)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], steps_per_execution=8)
    resuming.fit(model, data, epochs=epochs, verbose=0, callbacks=callbacks)


def in_half_precision(model: keras.Model) -> keras.Model:
    """The stripped model with every weight rounded to half precision."""
    plain = tfc.strip(model)
    plain.set_weights([w.astype(np.float16).astype(w.dtype) for w in plain.get_weights()])
    return plain


class Experiment:
    """One network, some sparsities, several seeds."""

    def __init__(self, options: flags.FlagValues):
        self.network = options.network
        settings = NETWORKS[self.network]
        self.goals = settings.goals
        self.sparsities = [float(s) for s in options.sparsities] or settings.sparsities
        self.clusters = tuple(int(k) for k in options.clusters) or settings.clusters
        self.epochs = tuple(int(e) for e in options.epochs) or settings.epochs
        (x, y), self.test = datasets.load("mnist", options.data_dir)
        limit = options.train_samples or len(x)
        self.x, self.y = x[:limit], y[:limit]
        self.folder = pathlib.Path(options.output).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = Results(self.folder / "deep_compression.csv", KEY)

    def key(self, stage: str, sparsity: float, seed: int) -> dict:
        values = (
            self.network,
            stage,
            sparsity,
            "/".join(map(str, self.clusters)) if stage == "shared" else "",
            seed,
            "/".join(map(str, self.epochs)),
            len(self.x),
        )
        return dict(zip(KEY, values, strict=True))

    def run(self, seed: int) -> None:
        wanted = [("float", 0.0)]
        wanted += [(stage, s) for s in self.sparsities for stage in ("pruned", "shared")]
        if all(self.results.has(**self.key(stage, s, seed)) for stage, s in wanted):
            return
        data = shifted(self.x, self.y, seed)
        model = self.saved("float", seed, lambda: self.trained(data, seed))
        self.measure("float", 0.0, seed, model)
        for sparsity in self.sparsities:
            if self.results.has(**self.key("shared", sparsity, seed)):
                continue
            pruned = self.saved(
                f"pruned_{sparsity}", seed, lambda s=sparsity: self.pruned(model, data, s)
            )
            self.measure("pruned", sparsity, seed, pruned)
            self.measure("shared", sparsity, seed, self.shared(pruned, data))

    def saved(self, name: str, seed: int, train) -> keras.Model:
        """A model that is trained once and kept."""
        epochs = "_".join(map(str, self.epochs))
        path = self.folder / f"{self.network}_{name}_{epochs}_{len(self.x)}_{seed}.keras"
        return kept_model(path, train, seed)

    def trained(self, data, seed: int) -> keras.Model:
        model = models.build(self.network, self.x.shape[1:], 10)
        fit(model, data, self.epochs[0], 3e-3)
        return model

    def pruned(self, model, data, sparsity: float) -> keras.Model:
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        steps = self.epochs[1] * len(data)
        decay = PolynomialDecay(0.5, sparsity, 0, int(0.6 * steps), frequency=max(1, steps // 200))
        fit(copy, data, self.epochs[1], 3e-3, [Pruning(decay, scope="global", verbose=0)])
        return copy

    def shared(self, model, data) -> keras.Model:
        dense, convolution = self.clusters
        numbers = {layers.Dense: dense, layers.Conv2D: convolution}
        here = {c: k for c, k in numbers.items() if any(isinstance(v, c) for v in model.layers)}
        clustered = cluster(model, here, init="optimal")
        steps = self.epochs[2] * len(data)
        callback = Clustering(frequency=max(1, len(data) // 4), end_step=int(0.6 * steps))
        fit(clustered, data, self.epochs[2], 5e-4, [callback])
        return clustered

    def measure(self, stage: str, sparsity: float, seed: int, model: keras.Model) -> None:
        key = self.key(stage, sparsity, seed)
        if self.results.has(**key):
            return
        x, y = self.test
        path = self.folder / f"{self.network}_{stage}_{sparsity}_{seed}.tfcp"
        plain = model if stage == "float" else in_half_precision(model)
        sizes = {c: pack(plain, path, coder=c).num_bytes for c in ("fixed", "huffman")}
        report = pack(plain, path)
        logits = unpack(path).predict(x, batch_size=500, verbose=0)
        kernels = [a for a in report.arrays if len(a.shape) > 1]
        self.results.add(
            **key,
            error=f"{100 * np.mean(logits.argmax(-1) != y):.2f}",
            zeros=f"{1 - sum(a.nonzeros for a in kernels) / sum(a.size for a in kernels):.4f}",
            distinct="/".join(str(a.distinct) for a in kernels),
            float_bytes=report.float_num_bytes,
            fixed_bytes=sizes["fixed"],
            huffman_bytes=sizes["huffman"],
            packed_bytes=report.num_bytes,
        )
        print(report)

    def table(self) -> str:
        mine = [
            {**row, "ratio": float(row["float_bytes"]) / float(row["packed_bytes"])}
            for row in self.results.rows
            if row["network"] == self.network
        ]
        by = ("stage", "sparsity", "clusters", "epochs", "train_samples")
        means = {"error": 2, "fixed_bytes": 0, "huffman_bytes": 0, "packed_bytes": 0, "ratio": 1}
        goals = " and ".join(f"error ≤ {e:.2f} % in {b:,} bytes" for e, b in self.goals)
        heads = ("stage", "sparsity", "k", "epochs", "samples", "seeds", "error %")
        return render_table(
            f"{self.network}; goals: {goals}",
            (*heads, "fixed", "Huffman", "best", "times smaller"),
            summary(mine, by, means),
        )


def define_flags() -> None:
    flags.DEFINE_enum("network", "lenet300", list(NETWORKS), "Which one.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one run each.")
    flags.DEFINE_list("sparsities", [], "Fractions of zeros; empty for the network's own.")
    flags.DEFINE_list("clusters", [], "Values per dense and per convolutional kernel.")
    flags.DEFINE_list("epochs", [], "Epochs of the float model, of pruning, of sharing.")
    flags.DEFINE_integer("train_samples", 0, "Training samples; 0 for all.", 0)
    flags.DEFINE_string("data_dir", None, "Folder of mnist.npz; default $TFCOMPRESS_DATA.")
    flags.DEFINE_string("output", "outputs", "Folder of results, models and files.")


def main(argv) -> None:
    del argv
    experiment = Experiment(flags.FLAGS)
    for seed in map(int, flags.FLAGS.seeds):
        experiment.run(seed)
    print(experiment.table())


if __name__ == "__main__":
    define_flags()
    app.run(main)
