"""Int8 by calibration alone: what each option keeps of a float model, and what it costs.

    python -m benchmarks.calibration --data_dir=~/data --resnet8=resnet8.keras

Three networks on CIFAR-10: ResNet-8 (`--resnet8`, a trained model), MobileNetV1-0.25 and
MobileNetV2-0.35 at 64 pixels. The latter are trained here first, for a few epochs, and kept in
`--work_dir`. Each row of `calibration.csv` is one network with
one set of options, measured in a process of its own; started again, the benchmark skips the rows
that are there.

| column         | what it is                                                                     |
|----------------|--------------------------------------------------------------------------------|
| float_accuracy | of the float model on the test images, in %                                    |
| accuracy       | of the `.tflite` under LiteRT on the same images, in %                         |
| same_top1      | images on which file and float model choose the same class, in %               |
| snr_db         | power of the float logits over that of their difference to the file's, in dB   |
| cpu_seconds    | CPU time of `quantize`, all threads                                            |
| seconds        | elapsed time of `quantize`                                                     |
| peak_mib       | how much `quantize` raises the peak memory of the process                      |
"""

from __future__ import annotations

import json
import pathlib
import resource
import subprocess
import sys
import time
import warnings

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfcompress as tfc
from recipes import origin
from recipes.batches import flip_and_shift, steady
from recipes.kept import kept_model
from recipes.models import with_fused_batch_norm
from recipes.results import Results, summary
from tfcompress.model import render_table
from tfcompress.tools import datasets

_DATA = flags.DEFINE_string("data_dir", None, "Folder of the data sets; $TFCOMPRESS_DATA.")
_RESNET8 = flags.DEFINE_string("resnet8", None, "A trained ResNet-8; without it that is left out.")
_OUTPUT = flags.DEFINE_string("output_dir", "outputs", "Where the results go.")
_WORK = flags.DEFINE_string("work_dir", "outputs/calibration", "Float models and files.")
_MODELS = flags.DEFINE_list("models", None, "Names of networks; all by default.")
_OPTIONS = flags.DEFINE_list("options", None, "Names of options; all by default.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Which calibration images, one row each.")
_COUNT = flags.DEFINE_integer("images", 256, "Calibration images.")
_TEST = flags.DEFINE_integer("test_images", 10_000, "Test images.")
_EPOCHS = flags.DEFINE_integer("epochs", 4, "Epochs of the float training of a MobileNet.")
_TRAIN = flags.DEFINE_integer("train_images", 50_000, "Images of that training.")
_BATCH = flags.DEFINE_integer("batch_size", 128, "Images to a step of that training.")
_ROW = flags.DEFINE_string("row", None, "Internal: network;options;seed of a row to measure.")

_PER_TENSOR = tfc.WeightScheme(per_channel=False)


def _observed(observer: tfc.Observer) -> tfc.Scheme:
    return tfc.Scheme(activations=tfc.ActivationScheme(observer=observer))


#: Network → pixels.
SIDES = {"resnet8": 32, "mobilenet_v1": 64, "mobilenet_v2": 64}

#: Name → arguments of `quantize`. Names without a number of bits are int8 per channel.
OPTIONS = {
    "plain": {"bias_correction": False},
    "default": {},
    "equalize": {"bias_correction": False, "equalize": True},
    "equalize and correction": {"bias_correction": True, "equalize": True},
    "percentile 99.99": {"config": _observed(tfc.Percentile(99.99)), "bias_correction": False},
    "least squares": {"config": _observed(tfc.LeastSquares()), "bias_correction": False},
    "least squares and correction": {
        "config": _observed(tfc.LeastSquares()),
        "bias_correction": True,
    },
    "per tensor: plain": {"config": tfc.Scheme(_PER_TENSOR), "bias_correction": False},
    "per tensor: default": {"config": tfc.Scheme(_PER_TENSOR), "bias_correction": True},
    "per tensor: equalize": {
        "config": tfc.Scheme(_PER_TENSOR),
        "bias_correction": False,
        "equalize": True,
    },
    "per tensor: equalize and correction": {
        "config": tfc.Scheme(_PER_TENSOR),
        "bias_correction": True,
        "equalize": True,
    },
    "w4a8: plain": {"config": "w4a8", "bias_correction": False},
    "w4a8: default": {"config": "w4a8", "bias_correction": True},
}


def mobilenet(name: str) -> keras.Model:
    """MobileNetV1-0.25 or V2-0.35 for 64 pixels in 0..255; ten logits, random weights."""
    inputs = keras.Input((64, 64, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    arguments = {"weights": None, "classes": 10, "classifier_activation": None, "input_tensor": x}
    if name == "mobilenet_v1":
        model = keras.applications.MobileNet(alpha=0.25, dropout=0.0, **arguments)
    else:
        model = keras.applications.MobileNetV2(alpha=0.35, **arguments)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # A few thousand steps are too few for the averages over thousands that V2 takes.
            layer.momentum = 0.97
    return model


def train(name: str, images: np.ndarray, labels: np.ndarray) -> keras.Model:
    """Trains a MobileNet on CIFAR-10 at 64 pixels."""
    model = with_fused_batch_norm(mobilenet(name))
    batch, epochs = _BATCH.value, _EPOCHS.value
    pixels = tf.constant(images.astype(np.uint8))

    def load(index, label):
        return tf.cast(flip_and_shift(tf.gather(pixels, index), 0), tf.float32), label

    data = tf.data.Dataset.from_tensor_slices((np.arange(len(labels)), labels))
    data = data.shuffle(len(labels), seed=0).map(load, num_parallel_calls=2)
    data = data.batch(batch, drop_remainder=True)
    data = data.map(lambda x, y: (tf.image.resize(x, (64, 64)), y), num_parallel_calls=2)
    steps = epochs * (len(labels) // batch)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(4e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(steady(data.prefetch(2)), epochs=epochs, verbose=2)
    return tfc.strip(model)


def float_model(name: str, folder: pathlib.Path) -> keras.Model:
    if name == "resnet8":
        return keras.saving.load_model(_RESNET8.value, compile=False)

    def trained() -> keras.Model:
        (images, labels), _ = datasets.load("cifar10", _DATA.value)
        return train(name, images[: _TRAIN.value], labels[: _TRAIN.value])

    return kept_model(folder / f"{name}.keras", trained)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    if images.shape[1] == side:
        return images.astype(np.float32)
    parts = [tf.image.resize(images[i : i + 500], (side, side)) for i in range(0, len(images), 500)]
    return np.concatenate([part.numpy() for part in parts])


def peak_memory() -> int:
    """Largest resident size of the process so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name: str, option: str, seed: int) -> dict:
    """One row; in a process of its own, for its peak memory."""
    folder = pathlib.Path(_WORK.value)
    with np.load(folder / f"{_COUNT.value}_{_TEST.value}_{seed}.npz") as arrays:
        data = resized(arrays["calibration"], SIDES[name])
        x, y = arrays["x"], arrays["y"]
    model = float_model(name, folder)
    path = folder / f"{name}.tflite"
    before, cpu, start = peak_memory(), time.process_time(), time.perf_counter()
    with warnings.catch_warnings():
        # That equalization changes little at some layers.
        warnings.simplefilter("ignore")
        quantized = tfc.quantize(model, calibration_data=data, **OPTIONS[option])
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - start
    peak = peak_memory() - before
    tfc.export_tflite(quantized, path, verify_samples=32)
    x = resized(x, SIDES[name])
    expected = model.predict(x, verbose=0, batch_size=250)
    found = next(iter(tfc.Runner(path).predict(x).values()))
    noise = float(np.sum((found - expected) ** 2))
    return {
        "float_accuracy": f"{100 * np.mean(expected.argmax(-1) == y):.2f}",
        "accuracy": f"{100 * np.mean(found.argmax(-1) == y):.2f}",
        "same_top1": f"{100 * np.mean(found.argmax(-1) == expected.argmax(-1)):.2f}",
        "snr_db": f"{10 * np.log10(np.sum(expected**2) / noise):.1f}",
        "cpu_seconds": f"{cpu:.1f}",
        "seconds": f"{seconds:.1f}",
        "peak_mib": f"{peak / 1024:.0f}",
    }


def measured(name: str, option: str, seed: int) -> dict:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.calibration", f"--row={name};{option};{seed}"]
    given = {"data_dir": _DATA, "resnet8": _RESNET8, "work_dir": _WORK, "images": _COUNT}
    given["test_images"] = _TEST
    command += [f"--{key}={flag.value}" for key, flag in given.items() if flag.value is not None]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The process of {name}, {option} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def choose_images(folder: pathlib.Path, seeds: list[int]) -> None:
    """Keeps the images of every row in files, so that its process need not read all."""
    files = {seed: folder / f"{_COUNT.value}_{_TEST.value}_{seed}.npz" for seed in seeds}
    if all(path.exists() for path in files.values()):
        return
    (images, _), (x, y) = datasets.load("cifar10", _DATA.value)
    x, y = x[: _TEST.value].astype(np.uint8), y[: _TEST.value]
    for seed, path in files.items():
        chosen = np.random.default_rng(seed).choice(len(images), _COUNT.value, replace=False)
        np.savez(path, calibration=images[chosen].astype(np.uint8), x=x, y=y)


def main(_) -> None:
    if _ROW.value:
        name, option, seed = _ROW.value.split(";")
        print(json.dumps(measure(name, option, int(seed))))
        return
    folder, output = pathlib.Path(_WORK.value), pathlib.Path(_OUTPUT.value)
    for directory in (folder, output):
        directory.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in _SEEDS.value]
    choose_images(folder, seeds)
    results = Results(output / "calibration.csv", ("model", "options", "images", "seed"))
    for name in _MODELS.value or SIDES:
        if name == "resnet8" and _RESNET8.value is None:
            continue
        if name != "resnet8":
            float_model(name, folder)
        for option in _OPTIONS.value or OPTIONS:
            for seed in seeds:
                key = {"model": name, "options": option, "images": _COUNT.value, "seed": seed}
                if results.has(**key):
                    continue
                row = measured(name, option, seed)
                results.add(**key, test_images=_TEST.value, **row, commit=origin.commit())
                print(name, option, seed, row, flush=True)
    means = {"float_accuracy": 2, "accuracy": 2, "same_top1": 2, "snr_db": 1}
    means |= {"cpu_seconds": 1, "peak_mib": 0}
    columns = ("network", "options", "seeds", *means)
    cells = summary(results.rows, ("model", "options"), means)
    print(render_table("Int8 by calibration alone", columns, cells))


if __name__ == "__main__":
    app.run(main)
