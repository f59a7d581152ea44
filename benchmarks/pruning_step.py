"""What pruning costs per training step: the ratio to plain training, beside an A/A control.

Three copies of one model train in turns, one step at a time, in an order that rotates: plain, plain
again, and pruned with a mask update every `--frequency` steps. A round is `--frequency` steps of
each and gives two ratios of its times (pruned / plain and plain / plain); the table shows their
medians with 95 % bootstrap bounds. A machine that is not quiet shows in the width of the control.

    python -m benchmarks.pruning_step
    python -m benchmarks.pruning_step --model=lenet300 --input_shape=28,28,1 --batch_size=128
"""

from __future__ import annotations

import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from recipes import models
from tfcompress.pruning import PolynomialDecay, Pruner

FLAGS = flags.FLAGS


def bounds(ratios: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Median of the ratios and its 95 % bootstrap interval."""
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(ratios, (4000, len(ratios))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


class Trainee:
    """A compiled model with its own traced step, fed from memory."""

    def __init__(self, name: str, shape: tuple[int, ...], batch_size: int, prune_steps: int):
        keras.utils.set_random_seed(0)
        self.model = models.build(name, shape, 10)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.Adam(1e-3), loss)
        self.pruner = None
        if prune_steps:
            schedule = PolynomialDecay(0.0, 0.8, 0, prune_steps, frequency=FLAGS.frequency)
            self.pruner = Pruner(self.model, schedule)
            self.pruner.update(0)
        rng = np.random.default_rng(0)
        x = rng.uniform(0, 255, (batch_size, *shape)).astype(np.float32)
        y = rng.integers(0, 10, batch_size).astype(np.int32)
        self.data = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
        self.model.make_train_function()

    def step(self) -> float:
        """Takes one step, with what the callback does after it; returns seconds."""
        start = time.perf_counter()
        self.model.train_function(self.data)
        if self.pruner is not None:
            step = self.pruner.clock()
            if self.pruner.is_due(step):
                self.pruner.update(step)
        return time.perf_counter() - start


def main(argv: list[str]) -> None:
    shape = tuple(int(size) for size in FLAGS.input_shape)
    total = FLAGS.frequency * (FLAGS.rounds + 2)
    names = ("plain", "plain again", "pruned")
    trainees = {
        name: Trainee(FLAGS.model, shape, FLAGS.batch_size, total if name == "pruned" else 0)
        for name in names
    }
    for trainee in trainees.values():
        for _ in range(10):
            trainee.step()
    times = {name: np.zeros(FLAGS.rounds) for name in names}
    for index in range(FLAGS.rounds * FLAGS.frequency):
        for offset in range(len(names)):
            name = names[(index + offset) % len(names)]
            times[name][index // FLAGS.frequency] += trainees[name].step()
    plain = times["plain"]
    print(f"{FLAGS.model}, batch {FLAGS.batch_size}, an update every {FLAGS.frequency} steps")
    print(f"plain step: {1000 * np.median(plain) / FLAGS.frequency:.2f} ms")
    for name in names[1:]:
        median, low, high = bounds(times[name] / plain)
        print(f"{name:12s} / plain: {median:.4f}  [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
    flags.DEFINE_string("model", "resnet8", "A model of recipes.models.")
    flags.DEFINE_list("input_shape", ["32", "32", "3"], "Height, width, channels.")
    flags.DEFINE_integer("batch_size", 32, "Batch size.", 1)
    flags.DEFINE_integer("frequency", 100, "Steps between two updates, and of a round.", 1)
    flags.DEFINE_integer("rounds", 10, "Rounds.", 2)
    app.run(main)
