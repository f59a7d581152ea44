"""Knowledge distillation on real data: five experiments, each resumable.

| --experiment    | what it shows                                                   | two cores |
|-----------------|-----------------------------------------------------------------|-----------|
| `mnist`         | Hinton 2015, section 3: 2×1200 with dropout and jitter → 2×800  | 40 min    |
| `never_saw_a_3` | the same student, taught without a single image of a 3          | 12 min    |
| `fashion`       | a CNN teaches one ten times smaller; every loss                 | 120 min   |
| `lowbit`        | a ResNet-8 teaches its own copy of 4-bit weights                | 80 min    |
| `lowbit_few`    | the same, on a tenth of the training images                     | 40 min    |

Each finished run adds a row to `distill.csv` in `--output`; started again, the recipe skips what is
there. Teachers and their cached outputs are kept in the same folder, so another `--teacher` wants
another one. The table, mean ± deviation over the seeds at the last epoch, is made from the rows and
written beside them.

Run from the project's root:

    python -m recipes.distill --experiment=mnist --data_dir=~/data
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from recipes import models, resuming
from recipes.batches import batches, flip_and_shift
from recipes.distill_models import (
    CLOTHING_VIEWS,
    DIGIT_VIEWS,
    averaged,
    dense_net,
    fashion_net,
    fashion_student,
    jitter,
)
from recipes.distill_results import Run, table
from recipes.models import with_fused_batch_norm
from tfcompress.distillation import (
    AttentionTransfer,
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
    TeacherCache,
)
from tfcompress.model import strip
from tfcompress.quantization import QuantizationConfig, QuantizationSchedule, quantize
from tfcompress.tools import datasets

#: Sixteen values of a logit cannot follow soft targets, nor sixteen of a pixel show much.
LOW_BITS = {
    "w4a8": "w4a8",
    "w4a4": QuantizationConfig("w4a4", by_name={"image|rescaling.*|logits": "int8"}),
}
#: Small batches of these nets of a million weights would spend their time in Adam.
DENSE_BATCH = 256


def crossentropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(model: keras.Model, data: tf.data.Dataset, epochs: int, rate=1e-3, callbacks=()) -> None:
    """Adam with cosine decay."""
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * len(data))
    model.compile(keras.optimizers.Adam(decay), crossentropy())
    resuming.fit(model, data, epochs=epochs, verbose=2, callbacks=callbacks)


def mnist_teacher(run: Run) -> keras.Model:
    (x, y), _ = run.data

    def train():
        # More dropout, or fewer epochs, and it does not learn all of its jittered images.
        model = dense_net(1200, dropout=0.25)
        fit(model, batches(x, y, 0, jitter, DENSE_BATCH), run.teacher_epochs)
        return model

    return averaged(run.teacher(train), DIGIT_VIEWS)


def taught_by(cache: TeacherCache, x, y, seed: int, epochs: int, t: float, weight: float):
    """The student of the digits, after training with the teacher's outputs at temperature `t`."""
    student = dense_net(800)
    loss = LogitsDistillation(temperature=t, teacher_from_logits=True)
    distiller = Distiller(cache, student, loss, student_loss_weight=weight)
    fit(distiller, batches(cache.pair(x), y, seed, batch_size=DENSE_BATCH), epochs)
    return student


def mnist(run: Run) -> None:
    (x, y), _ = run.data
    cache = run.cache(mnist_teacher(run), x, "mnist")

    def plain(seed: int):
        student = dense_net(800)
        fit(student, batches(x, y, seed, batch_size=DENSE_BATCH), run.epochs)
        return student

    def distilled(seed: int):
        return taught_by(cache, x, y, seed, run.epochs, 10.0, 0.1)

    for seed in run.seeds:
        run.measure("2×800 plain", seed, functools.partial(plain, seed))
        run.measure("2×800 distilled, T=10", seed, functools.partial(distilled, seed))


def never_saw_a_3(run: Run) -> None:
    """The student sees 9 digits; its bias for the tenth is set afterwards, on training images."""
    (x, y), (x_test, _) = run.data
    seen, y_seen = x[y != 3], y[y != 3]
    cache = run.cache(mnist_teacher(run), seen, "mnist_without_3")
    named = "2×800, no 3 seen", "2×800, no 3 seen, bias of 3 raised"
    for seed in run.seeds:
        # Both rows are of one training.
        if not any(run.wants(name, seed) for name in named):
            continue
        keras.utils.set_random_seed(seed)
        # What it says of a 3 is in the smallest of its scores, which only a high temperature shows.
        student = taught_by(cache, seen, y_seen, seed, run.epochs, 20.0, 0.0)
        logits = student.predict(x, batch_size=500, verbose=0)
        three = np.eye(10)[3]
        shifts = np.linspace(0, 10, 101)
        best = min(shifts, key=lambda b: ((logits + b * three).argmax(-1) != y).sum())
        tested = student.predict(x_test, batch_size=500, verbose=0)
        for name, shift in zip(named, (0.0, best), strict=True):
            if run.wants(name, seed):
                run.add(name, seed, tested + shift * three, student, 0)


def fashion(run: Run) -> None:
    """The teacher learns from images that are flipped too, its students from the images alone.

    So everything that a student's losses ask of the teacher is computed once.
    """
    (x, y), _ = run.data

    def train_teacher():
        model = fashion_net((32, 64, 96), 128, dropout=0.4)
        model = with_fused_batch_norm(model)
        data = batches(x, y, 0, tf.image.random_flip_left_right)
        fit(model, data, run.teacher_epochs, 2e-3)
        return strip(model)

    teacher = averaged(run.teacher(train_teacher), CLOTHING_VIEWS)
    soft = {
        t: [LogitsDistillation, {"temperature": t, "teacher_from_logits": True}, 1.0]
        for t in (2.0, 4.0, 10.0)
    }
    # Features are those of the first call, of the image as it is.
    at_map = {"teacher_layer": "map_2:0", "student_layer": "map_2"}
    embedded = {"teacher_layer": "embedding:0", "student_layer": "embedding"}
    variants = {
        "plain": [],
        **{f"logits, T={t:.0f}": [term] for t, term in soft.items()},
        "hint": [[FeatureDistillation, at_map, 1.0]],
        "attention transfer": [[AttentionTransfer, at_map, 8.0]],
        "similarity preserving": [[SimilarityPreserving, embedded, 3000.0]],
        "relational distance": [[RelationalDistance, embedded, 25.0]],
        "relational angle": [[RelationalAngle, embedded, 50.0]],
    }
    for name in list(variants)[1 + len(soft) :]:
        variants[f"logits + {name}"] = [soft[2.0], *variants[name]]
    for seed in run.seeds:
        for name, terms in variants.items():

            def train(terms=terms, seed=seed):
                student = with_fused_batch_norm(fashion_student())
                model, taught_x = student, x
                if terms:
                    losses = [cls(**options) for cls, options, _ in terms]
                    weights = [weight for _, _, weight in terms]
                    used = [o["teacher_layer"] for _, o, _ in terms if "teacher_layer" in o]
                    file = "_".join(["fashion", *(name.split(":")[0] for name in used)])
                    cache = run.cache(teacher, x, file, used)
                    # Labels count for little beside soft ones, and for all beside features only.
                    labels = 0.1 if LogitsDistillation in (cls for cls, _, _ in terms) else 1.0
                    model = Distiller(
                        cache, student, losses, loss_weights=weights, student_loss_weight=labels
                    )
                    taught_x = cache.pair(x)
                fit(model, batches(taught_x, y, seed), run.epochs, 3e-3)
                return student

            run.measure(name, seed, train)


def lowbit(run: Run, one_in: int = 1) -> None:
    """The float model teaches its own low-bit copy, on each image as the copy sees it.

    At the defaults, which are a temperature of 1 (a higher one ruins students of few bits) and as
    much weight for the labels as for the teacher; without labels; and with hints after each of the
    residual blocks, which tell every layer what its rounding cost.

    Args:
        run: The run.
        one_in: The students get one of so many training images.
    """
    (x, y), test = run.data

    def train_teacher():
        model = with_fused_batch_norm(models.build("resnet8", (32, 32, 3), 10))
        fit(model, batches(x, y, 0, flip_and_shift), run.teacher_epochs, 3e-3)
        return strip(model)

    teacher = run.teacher(train_teacher)
    few = slice(len(x) // one_in)
    run = dataclasses.replace(run, data=((x[few], y[few]), test))
    blocks = [layer.name for layer in teacher.layers if isinstance(layer, keras.layers.ReLU)][2::2]
    # The weights of the labels, of the logits and of each hint.
    variants = {
        "alone": (1.0,),
        "taught": (1.0, 1.0),
        "taught without labels": (0.0, 1.0),
        "taught without labels, hints": (0.0, 1.0, *(10.0 for _ in blocks)),
    }

    def student_of(scheme: str, seed: int, labels: float, *weights: float) -> keras.Model:
        student = learner = quantize(teacher, LOW_BITS[scheme], calibration_data=x[few][:512])
        if weights:
            hints = [FeatureDistillation(name, name) for name in blocks]
            losses = [LogitsDistillation(), *hints][: len(weights)]
            learner = Distiller(
                teacher, student, losses, loss_weights=weights, student_loss_weight=labels
            )
        data = batches(x[few], y[few], seed, flip_and_shift)
        # Few bits make batch statistics noisy: the last quarter does without them.
        freeze = 3 * run.epochs * len(data) // 4
        schedule = QuantizationSchedule(freeze_ranges_step=freeze, freeze_batch_norm_step=freeze)
        fit(learner, data, run.epochs, callbacks=[schedule])
        return student

    for seed in run.seeds:
        for scheme in LOW_BITS:
            for name, weights in variants.items():
                train = functools.partial(student_of, scheme, seed, *weights)
                # No integer kernel takes activations of 4 bits.
                run.measure(f"{scheme} {name}", seed, train, in_file=scheme == "w4a8")


#: Experiment → function, data set, epochs of the students and of the teacher.
EXPERIMENTS = {
    "mnist": (mnist, "mnist", 40, 60),
    "never_saw_a_3": (never_saw_a_3, "mnist", 40, 60),
    "fashion": (fashion, "fashion_mnist", 12, 10),
    "lowbit": (lowbit, "cifar10", 1, 30),
    "lowbit_few": (functools.partial(lowbit, one_in=10), "cifar10", 3, 30),
}


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    options = flags.FLAGS
    function, data_set, epochs, teacher_epochs = EXPERIMENTS[options.experiment]
    (x, y), (x_test, y_test) = datasets.load(data_set, options.data_dir)
    part = slice(options.limit)
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    run = Run(
        options.experiment,
        [int(seed) for seed in options.seeds],
        options.epochs or epochs,
        options.epochs or teacher_epochs,
        ((x[part], y[part]), (x_test[part], y_test[part])),
        output,
        options.teacher,
        options.variants,
    )
    function(run)
    text = table(run.rows)
    (output / f"distill_{options.experiment}.md").write_text(text + "\n")
    print(text)


def define_flags() -> None:
    flags.DEFINE_enum("experiment", None, list(EXPERIMENTS), "Which one to run.", required=True)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the students.")
    flags.DEFINE_integer("epochs", None, "Epochs of students and teacher, for a quick look.")
    flags.DEFINE_string("data_dir", None, "Folder of the data sets (default: $TFCOMPRESS_DATA).")
    flags.DEFINE_string("output", "outputs", "Folder of results, teachers and caches.")
    flags.DEFINE_string("teacher", None, "A trained teacher's .keras file, instead of training it.")
    flags.DEFINE_list("variants", [], "Only these rows of the table.")
    flags.DEFINE_integer("limit", None, "Only so many training and test samples, for a quick look.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
