"""Everything in one `fit`: a teacher, 50 % pruning, 16 shared values, int8; then the file.

A trained float ResNet-8 teaches a quantized and clustered copy of itself, which is pruned while it
learns. The same run without the teacher stands beside it. From the file, not from the model, the
table counts the zeros of each kernel and the codes it uses, and says how well file and model agree.

| column        | what it is                                                                |
|---------------|---------------------------------------------------------------------------|
| Keras, LiteRT | accuracy on the test set of the model, and of the file, in %              |
| zeros         | smallest share of zero codes over the kernels of the file, in %           |
| lost zeros    | weights that the mask holds at zero and the file does not; must be 0      |
| codes         | largest number of different codes in a kernel: 16 at the most             |
| equal         | share of output steps at which file and model agree, in %                 |

Rows are added to `compose.csv` in `--output`; started again, the recipe skips what is there. About
10 minutes per seed on two cores.

    python -m recipes.compose --data_dir=~/data --teacher=resnet8.keras
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import keras
import numpy as np
from absl import app, flags

from recipes import models, resuming
from recipes.batches import BATCH, augmented
from recipes.kept import kept_model
from recipes.results import Results, markdown, summary
from tfcompress.distillation import Distiller, LogitsDistillation
from tfcompress.export import Runner, export_tflite, shared_converter
from tfcompress.model import compressible_kernels
from tfcompress.pruning import PolynomialDecay, Pruning
from tfcompress.quantization import QuantizationSchedule, quantize
from tfcompress.sharing import Clustering, cluster
from tfcompress.tools import datasets

KEY = ("variant", "seed", "epochs", "train_samples")
NUM_CLUSTERS = 16
MEASURED = ("keras", "litert", "zeros", "lost_zeros", "codes", "equal", "gzip_bytes")


def fit(model: keras.Model, data, steps: int, epochs: int, rate: float, callbacks=()) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss)
    resuming.fit(model, data, epochs=epochs, verbose=2, callbacks=callbacks)


def float_model(path: pathlib.Path, x, y, epochs: int) -> keras.Model:
    """The teacher: trained once, then read."""

    def train() -> keras.Model:
        model = models.build("resnet8", (32, 32, 3), 10)
        fit(model, augmented(x, y, 0), epochs * (len(x) // BATCH), epochs, 3e-3)
        return model

    return kept_model(path, train)


def compressed(teacher: keras.Model, x, y, seed: int, epochs: int, taught: bool) -> keras.Model:
    """The student after its one `fit`."""
    keras.utils.set_random_seed(seed)
    student = cluster(quantize(teacher, "int8", calibration_data=x[:512]), NUM_CLUSTERS)
    model = Distiller(teacher, student, LogitsDistillation()) if taught else student
    steps = epochs * (len(x) // BATCH)
    callbacks = [
        Pruning(PolynomialDecay(0.0, 0.5, begin_step=0, end_step=max(1, steps // 2)), verbose=0),
        Clustering(frequency=max(1, steps // 20), end_step=max(1, 2 * steps // 3)),
        QuantizationSchedule(
            freeze_ranges_step=3 * steps // 4, freeze_batch_norm_step=3 * steps // 4
        ),
    ]
    fit(model, augmented(x, y, seed), steps, epochs, 1e-3, callbacks)
    return student


def measure(student: keras.Model, path: pathlib.Path, x_test, y_test) -> dict[str, float]:
    """Exports and reads the file back."""
    report = export_tflite(student, path, verify_data=x_test[:1000])
    logits = next(iter(Runner(path).predict(x_test).values()))
    masked = {
        k.layer.name: int((k.variable.numpy() == 0).sum()) for k in compressible_kernels(student)
    }
    kernels = [layer for layer in report.layers if layer.name in masked]
    if len(kernels) != len(masked):
        raise RuntimeError(f"Expected every kernel in the file: {sorted(masked)}.")
    zeros = {layer.name: layer.pruned + layer.rounded_to_zero for layer in kernels}
    lost = [max(0, masked[name] - zeros[name]) for name in zeros]
    predicted = student.predict(x_test, batch_size=500, verbose=0)
    return {
        "keras": 100 * float(np.mean(predicted.argmax(-1) == y_test)),
        "litert": 100 * float(np.mean(logits.argmax(-1) == y_test)),
        "zeros": 100 * min(zeros[layer.name] / layer.num_weights for layer in kernels),
        "lost_zeros": sum(lost),
        "codes": max(layer.distinct for layer in kernels),
        "equal": 100 * report.agreement,
        "gzip_bytes": report.gzip_bytes,
    }


def run(settings, results: Results, data: tuple, teacher: keras.Model) -> None:
    """All variants of all seeds that are not in the results."""
    (x, y), (x_test, y_test) = data
    for seed in map(int, settings.seeds):
        for variant, taught in (("alone", False), ("taught", True)):
            values = (variant, seed, settings.epochs, len(x))
            key = dict(zip(KEY, values, strict=True))
            if results.has(**key):
                print(f"{variant}, seed {seed}: already in {results.path.name}")
                continue
            student = compressed(teacher, x, y, seed, settings.epochs, taught)
            path = results.path.with_name(f"compose_{variant}_{seed}.tflite")
            measured = measure(student, path, x_test, y_test)
            results.add(**key, **{name: f"{measured[name]:.4f}" for name in MEASURED})


def table(rows: Sequence[dict[str, str]]) -> str:
    """Mean ± deviation over the seeds as Markdown."""
    heads = (
        "run",
        "seeds",
        "Keras %",
        "LiteRT %",
        "zeros %",
        "lost zeros",
        "codes",
        "equal %",
        "gzip",
    )
    return markdown(heads, summary(rows, ("variant",), dict.fromkeys(MEASURED, 2)))


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    settings = flags.FLAGS
    output = pathlib.Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    part = slice(settings.limit)
    train, test = datasets.load("cifar10", settings.data_dir)
    data = tuple((x[part], y[part]) for x, y in (train, test))
    path = pathlib.Path(settings.teacher or output / "teacher_compose.keras")
    teacher = float_model(path, *data[0], settings.teacher_epochs)
    results = Results(output / "compose.csv", KEY)
    with shared_converter():
        run(settings, results, data, teacher)
    text = table(results.rows)
    (output / "compose.md").write_text(text + "\n")
    print(text)


def define_flags() -> None:
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the students.")
    flags.DEFINE_integer("epochs", 3, "Epochs of the one fit.")
    flags.DEFINE_integer("teacher_epochs", 30, "Epochs of the teacher, where it is trained here.")
    flags.DEFINE_string("teacher", None, "A trained ResNet-8, instead of training one.")
    flags.DEFINE_string("data_dir", None, "Folder of cifar10*.npz (default: $TFCOMPRESS_DATA).")
    flags.DEFINE_string("output", "outputs", "Folder of results and files.")
    flags.DEFINE_integer("limit", None, "Only so many training and test samples, for a quick look.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
