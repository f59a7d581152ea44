"""The main job on bundled data: train a float model, quantize, train, export, verify, report.

Takes about a minute and no network: the data are the 1,797 handwritten digits that scikit-learn
brings along.
"""

from __future__ import annotations

import pathlib

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from recipes import models
from tfcompress.export.runtime import Runner
from tfcompress.tools import datasets


def fit(model: keras.Model, data, epochs: int, rate: float, callbacks=()) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(*data, batch_size=32, epochs=epochs, verbose=0, callbacks=list(callbacks))


def main(argv) -> None:
    del argv
    folder = pathlib.Path(flags.FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(flags.FLAGS.seed)
    train, (x, y) = datasets.load("digits")

    model = models.build("digits_cnn", x.shape[1:], 10)
    fit(model, train, 15, 2e-3)

    print(tfc.plan(model))
    model = tfc.quantize(model, "int8", calibration_data=train[0][:256])
    schedule = tfc.callbacks.QuantizationSchedule(freeze_ranges_step=90, freeze_batch_norm_step=90)
    fit(model, train, 4, 3e-4, [schedule])

    path = folder / "digits.tflite"
    report = tfc.export_tflite(
        model, path, verify_data=x, min_agreement=0.97, labels=[str(i) for i in range(10)]
    )
    (folder / "report.txt").write_text(str(report))
    print(report)

    in_keras = np.mean(model.predict(x, verbose=0).argmax(-1) == y)
    in_litert = np.mean(Runner(path).predict(x)["logits"].argmax(-1) == y)
    print(f"Accuracy on {len(y)} test digits: Keras {in_keras:.2%}, LiteRT {in_litert:.2%}")
    print(f"Written: {path}, {path.with_suffix('.json')}, {folder / 'report.txt'}")


if __name__ == "__main__":
    flags.DEFINE_string("output_dir", "outputs/quickstart", "Where the file and the report go.")
    flags.DEFINE_integer("seed", 0, "Random seed.")
    app.run(main)
