"""What distillation costs per train step, in turns with what it is made of.

Usage:
    python -m benchmarks.distillation_step

| compared                          | to                                     |
|-----------------------------------|----------------------------------------|
| distilled step                    | plain student step + teacher's forward |
| distilled step with a hint        | plain student step + teacher's forward |
| distilled step, cached teacher    | plain student step                     |
| Keras' Distiller, the same losses | plain student step + teacher's forward |

Each round times every candidate once, in a shuffled order, over the same batches; a ratio is taken
within a round and its median over the rounds is printed, so that a busy machine slows both sides.
Each ratio is given in elapsed time, which is what counts, and in the process's CPU time, over all
threads, which other programs hardly touch. The milliseconds are this machine's, at this hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

from tfcompress.distillation import (
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    TeacherCache,
)

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds.", lower_bound=3)
_STEPS = flags.DEFINE_integer("steps", 3, "Steps timed in a round.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 128, "Samples per step.", lower_bound=1)

SHAPE = (32, 32, 3)


def conv_net(widths: Sequence[int]) -> keras.Model:
    """Three convolutions with batch norm, of which the last gives or takes hints."""
    inputs = keras.Input(SHAPE)
    x = layers.Rescaling(1 / 255)(inputs)
    for i, filters in enumerate(widths):
        x = layers.Conv2D(filters, 3, min(i + 1, 2), padding="same", use_bias=False)(x)
        x = layers.ReLU(name=f"map_{i}")(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def student_net() -> keras.Model:
    """A small student feels what distillation adds the most."""
    return conv_net((8, 16, 32))


def _step(model: keras.Model, inputs) -> Callable[[], None]:
    """`steps` train steps on one batch, in the function that `fit` runs."""
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensors(inputs).repeat()
    batch = next(iter(data))
    model.train_on_batch(*batch)  # Builds and traces.
    function, iterator = model.train_function, iter(data)

    def run() -> None:
        for _ in range(_STEPS.value):
            logs = function(iterator)
        logs["loss"].numpy()

    return run


def _forward(model: keras.Model, x) -> Callable[[], None]:
    function = tf.function(lambda batch: model(batch, training=False), autograph=False)
    x = tf.constant(x)

    def run() -> None:
        for _ in range(_STEPS.value):
            outputs = function(x)
        outputs.numpy()

    return run


def candidates() -> dict[str, Callable[[], None]]:
    """What is timed, warmed up."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (_BATCH.value, *SHAPE)).astype(np.float32)
    y = rng.integers(0, 10, _BATCH.value)
    teacher = conv_net((32, 64, 128))
    cache = TeacherCache.compute(teacher, x)

    def distiller(source, hint: bool = False) -> Distiller:
        student = student_net()
        losses = [LogitsDistillation()]
        if hint:
            losses.append(FeatureDistillation("map_2", "map_2"))
        return Distiller(source, student, losses)

    keras_distiller = keras.distillation.Distiller(
        teacher, student_net(), keras.distillation.LogitsDistillation(1.0)
    )
    return {
        "student": _step(student_net(), (x, y)),
        "teacher": _forward(teacher, x),
        "distilled": _step(distiller(teacher), (x, y)),
        "hint": _step(distiller(teacher, hint=True), (x, y)),
        "cached": _step(distiller(cache), (cache.pair(x), y)),
        "keras": _step(keras_distiller, (x, y)),
    }


Times = dict[str, np.ndarray]


def measure() -> tuple[Times, Times]:
    """Elapsed and CPU seconds per step: candidate → one value per round."""
    runs = candidates()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    order = list(runs)
    rng = np.random.default_rng(0)
    for round_number in range(_ROUNDS.value + 2):
        rng.shuffle(order)
        for name in order:
            start = time.perf_counter(), time.process_time()
            runs[name]()
            end = time.perf_counter(), time.process_time()
            if round_number >= 2:  # The first ones warm up.
                times[name].append((end[0] - start[0], end[1] - start[1]))
    arrays = {name: np.array(values).T / _STEPS.value for name, values in times.items()}
    return tuple({name: array[i] for name, array in arrays.items()} for i in (0, 1))


def ratios(times: Times) -> Times:
    """What is compared → one ratio per round."""
    student, both = times["student"], times["student"] + times["teacher"]
    return {
        "distilled / (student + teacher)": times["distilled"] / both,
        "distilled with a hint / (student + teacher)": times["hint"] / both,
        "cached / student": times["cached"] / student,
        "Keras' Distiller / (student + teacher)": times["keras"] / both,
    }


def table(elapsed: Times, cpu: Times) -> str:
    """The ratios as Markdown, with the quartiles over the rounds."""
    lines = ["| ratio | elapsed | quartiles | CPU | quartiles |", "|---|---|---|---|---|"]
    in_cpu = ratios(cpu)
    for name, in_time in ratios(elapsed).items():
        cells = []
        for values in (in_time, in_cpu[name]):
            low, middle, high = np.percentile(values, (25, 50, 75))
            cells += [f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    medians = ", ".join(f"{name} {1e3 * np.median(t):.1f} ms" for name, t in elapsed.items())
    return "\n".join([*lines, "", f"Medians: {medians}."])


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    print(table(*measure()))


if __name__ == "__main__":
    app.run(main)
