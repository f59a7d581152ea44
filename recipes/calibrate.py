"""Int8 without training: what bias correction and cross-layer equalization gain.

Starts from a trained float model and quantizes it by calibration alone, in three schemes and with
every combination of the two options. Accuracy is that of the `.tflite`, run by LiteRT on the whole
test set; agreement is that of its largest logit with the float model's.

    python -m recipes.calibrate --dataset=cifar10 --data_dir=~/data --start=resnet8.keras
"""

from __future__ import annotations

import pathlib

import keras
import numpy as np
from absl import app, flags

import tfcompress as tfc
from recipes.results import Results
from tfcompress.export import Runner
from tfcompress.model import render_table
from tfcompress.tools import datasets

SCHEMES = {
    "int8 per channel": tfc.Scheme(),
    "int8 per tensor": tfc.Scheme(weights=tfc.WeightScheme(per_channel=False)),
    "int4 per channel": tfc.Scheme(weights=tfc.WeightScheme(num_bits=4)),
}
OPTIONS = {
    "neither": {"bias_correction": False},
    "bias correction": {"bias_correction": True},
    "equalization": {"bias_correction": False, "equalize": True},
    "both": {"equalize": True, "bias_correction": True},
}


def main(argv) -> None:
    del argv
    settings = flags.FLAGS
    (images, _), (x, y) = datasets.load(settings.dataset, settings.data_dir)
    model = keras.models.load_model(settings.start, compile=False)
    expected = model.predict(x, verbose=0, batch_size=500).argmax(-1)
    chosen = np.random.default_rng(settings.seed).choice(len(images), 512, replace=False)
    folder = pathlib.Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(folder / "calibrate.csv", ("dataset", "scheme", "option", "seed"))
    with tfc.shared_converter():
        for scheme in SCHEMES:
            for option, arguments in OPTIONS.items():
                key = {"dataset": settings.dataset, "scheme": scheme, "option": option}
                if results.has(**key, seed=settings.seed):
                    continue
                data = images[chosen]
                quantized = tfc.quantize(model, SCHEMES[scheme], calibration_data=data, **arguments)
                path = folder / "calibrate.tflite"
                tfc.export_tflite(quantized, path)
                found = next(iter(Runner(path).predict(x).values())).argmax(-1)
                results.add(
                    **key,
                    seed=settings.seed,
                    float_accuracy=f"{100 * np.mean(expected == y):.2f}",
                    tflite_accuracy=f"{100 * np.mean(found == y):.2f}",
                    agreement_with_float=f"{100 * np.mean(found == expected):.2f}",
                )
    columns = ("dataset", "scheme", "option", "float %", "LiteRT %", "agrees with float %")
    rows = [
        [row[name] for name in ("dataset", "scheme", "option", "float_accuracy")]
        + [row["tflite_accuracy"], row["agreement_with_float"]]
        for row in results.rows
    ]
    print(render_table("Int8 without training", columns, rows))


if __name__ == "__main__":
    flags.DEFINE_string("dataset", "cifar10", "Data set.")
    flags.DEFINE_string("data_dir", None, "Folder of the data sets; default $TFCOMPRESS_DATA.")
    flags.DEFINE_string("start", None, "The trained .keras model.", required=True)
    flags.DEFINE_integer("seed", 0, "Which calibration images.")
    flags.DEFINE_string("output_dir", "outputs", "Where results go.")
    app.run(main)
