"""The main job on bundled data: train, prune, quantize, distill, export, verify, report.

A float model is trained; then its int8 copy is pruned and taught by it, all in one `fit`; the copy
is exported, run by LiteRT and described. Takes about a minute and no network: the data are the
1,797 handwritten digits that scikit-learn brings along.
"""

from __future__ import annotations

import pathlib

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from recipes import models, resuming
from tfcompress.export import Runner
from tfcompress.tools import datasets

_EPOCHS, _BATCH = 8, 32


def fit(model: keras.Model, data, epochs: int, rate: float, callbacks=()) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    batches = tfc.ShuffledBatches(*data, batch_size=_BATCH)
    resuming.fit(model, batches, epochs=epochs, verbose=0, callbacks=callbacks)


def compressed(model: keras.Model, train, sparsity: float) -> keras.Model:
    """An int8 copy of `model`, pruned and taught by it in one `fit`."""
    student = tfc.quantize(model, "int8", calibration_data=train[0][:256])
    steps = _EPOCHS * -(-len(train[0]) // _BATCH)
    decay = tfc.PolynomialDecay(0.0, sparsity, begin_step=0, end_step=steps // 2, frequency=10)
    callbacks = [
        tfc.callbacks.Pruning(decay, scope="global", verbose=0),
        tfc.callbacks.QuantizationSchedule(
            freeze_ranges_step=steps * 3 // 4, freeze_batch_norm_step=steps // 2
        ),
    ]
    distiller = tfc.Distiller(model, student, [tfc.LogitsDistillation(temperature=2.0)])
    fit(distiller, train, _EPOCHS, 1e-3, callbacks)
    return student


def main(argv) -> None:
    del argv
    folder = pathlib.Path(flags.FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(flags.FLAGS.seed)
    train, (x, y) = datasets.load("digits")

    model = models.build("digits_cnn", x.shape[1:], 10)
    fit(model, train, 15, 2e-3)
    print(tfc.plan(model))
    student = compressed(model, train, flags.FLAGS.sparsity)

    path = folder / "digits.tflite"
    report = tfc.export_tflite(
        student,
        path,
        verify_data=x,
        min_agreement=0.97,
        compare_float=True,
        labels=[str(i) for i in range(10)],
    )
    (folder / "report.txt").write_text(str(report))
    print(report)

    logits = {
        "float": model.predict(x, verbose=0),
        f"int8, {flags.FLAGS.sparsity:.0%} zeros, in Keras": student.predict(x, verbose=0),
        "the same in LiteRT": Runner(path).predict(x)["logits"],
    }
    print(f"Accuracy on {len(y)} test digits:")
    for name, values in logits.items():
        print(f"  {name}: {np.mean(values.argmax(-1) == y):.2%}")
    print(f"Written: {path}, {path.with_suffix('.json')}, {folder / 'report.txt'}")


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", "outputs/quickstart", "Where the file and the report go.")
    flags.DEFINE_float("sparsity", 0.6, "Share of zeros in the kernels.", 0.0, 0.99)
    flags.DEFINE_integer("seed", 0, "Random seed.")
    app.run(main)
