"""Every family of `keras.applications`, shrunk to half its MACs: does it still do everything?

Per family (smallest member, 32 to 96 pixels) with random weights and random batch-norm statistics:

| column   | what it is                                                                           |
|----------|--------------------------------------------------------------------------------------|
| groups   | how many groups of channels there are; kept: layers that keep all of theirs          |
| MACs     | what is left, counted on the result; must lie in 0.48–0.52                           |
| oracle   | largest difference, relative, to the model with the same activations held at zero    |
| step     | loss after one training step is a number                                             |
| saved    | the reloaded file gives the same outputs                                             |
| int8     | size of the exported file, and the kinds of layers that are in float in it           |

The exit code is 1 if a family misses. About 30 minutes, most of it the exports.

    python -m benchmarks.shrink_applications
    python -m benchmarks.shrink_applications --families=MobileNetV2,ResNet50V2 --noexport
"""

from __future__ import annotations

import contextlib
import csv
import io
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfcompress as tfc
from recipes.origin import commit
from tfcompress.model import render_table
from tfcompress.pruning.structure import Dependencies, shrink

#: Smallest member of each family → pixels.
FAMILIES = {
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "NASNetMobile": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "Xception": 71,
}

_FAMILIES = flags.DEFINE_list("families", list(FAMILIES), "Which families.")
_TARGET = flags.DEFINE_float("target", 0.5, "Fraction of MACs to keep.")
_EXPORT = flags.DEFINE_boolean("export", True, "Whether to export int8 files.")
_OUTPUT = flags.DEFINE_string("output", None, "A .csv file for the rows.")

COLUMNS = ("family", "groups", "kept", "macs", "parameters", "oracle", "step", "saved", "int8")


def build(name: str) -> keras.Model:
    size = FAMILIES[name]
    model = getattr(keras.applications, name)(
        input_shape=(size, size, 3), weights=None, classes=10, classifier_activation=None
    )
    randomize(model)
    norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
    if norms:
        random_statistics(model, norms, images_of(name, 16))
    return model


def images_of(name: str, count: int) -> np.ndarray:
    shape = (count, FAMILIES[name], FAMILIES[name], 3)
    return np.random.default_rng(1).uniform(0, 255, shape).astype(np.float32)


def random_statistics(model: keras.Model, norms: Sequence, images: np.ndarray) -> None:
    """Statistics around those of the images: far from them a deep network falls silent."""
    rng = np.random.default_rng(0)
    tfc.reestimate_batch_norm(model, images)
    for norm in norms:
        mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
        norm.moving_mean.assign(mean + 0.2 * np.sqrt(variance) * rng.normal(size=mean.shape))
        norm.moving_variance.assign(variance * rng.uniform(0.5, 1.5, mean.shape) + 1e-6)


def randomize(model: keras.Model, seed: int = 0) -> None:
    """Random weights of a size that keeps activations near one, and random statistics."""
    rng = np.random.default_rng(seed)
    # A depthwise kernel sums over its window only, whatever its name is.
    windows = {
        id(layer.kernel): np.prod(layer.kernel_size)
        for layer in model.layers
        if isinstance(layer, keras.layers.DepthwiseConv2D)
    }
    for variable in model.variables:
        shape, name = tuple(variable.shape), variable.name
        if not keras.backend.is_float_dtype(variable.dtype):
            continue
        if name in ("gamma", "moving_variance", "variance"):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            window = 9 if "depthwise" in variable.name else np.prod(shape[:-1])
            fan_in = windows.get(id(variable), window)
            value = rng.normal(size=shape) / np.sqrt(fan_in)
        else:
            value = rng.normal(size=shape) * 0.2
        variable.assign(value)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            # It computes with copies of its variables in another shape.
            layer.finalize_state()


def oracle(model: keras.Model, smaller: keras.Model, images: np.ndarray) -> float:
    """Largest relative difference to `model` with the removed channels' activations at zero.

    Where a layer normalizes over channels, zeros would count in its statistics: the channels that
    are left are normalized alone, as in the smaller model.
    """
    dependencies = Dependencies(model)
    tracer, graph = dependencies.tracer, dependencies.graph
    kept = dependencies.removed(dependencies.units_of(smaller.shrink_report.removed))

    def left(value, axis):
        labels = tracer.of(value)[axis]
        return np.ones(value.shape[axis], bool) if labels is None else kept.of(labels)

    def call(node, args, kwargs):
        operation = node.operation
        if isinstance(operation, keras.layers.LayerNormalization):
            results = [_normalize(operation, args[0], left(node.inputs[0], -1))]
        else:
            results = keras.tree.flatten(operation(*args, **kwargs))
        masked = []
        for value, result in zip(node.outputs, results, strict=True):
            for axis in range(1, len(value.shape)):
                if tracer.of(value)[axis] is not None:
                    shape = [1] * len(value.shape)
                    shape[axis] = -1
                    result = result * tf.constant(left(value, axis).reshape(shape), result.dtype)
            masked.append(result)
        return masked

    (source,) = graph.flat_inputs
    run = tf.function(lambda x: graph.run({source: x}, call), autograph=False)
    expected = np.asarray(run(tf.constant(images)))
    if expected.std(0).max() < 1e-3 * np.abs(expected).max():
        raise ValueError("Expected outputs that depend on the image. Received: a silent network.")
    received = smaller.predict(images, verbose=0)
    return float(np.abs(expected - received).max() / np.abs(expected).max())


def _normalize(layer, x, left: np.ndarray):
    weight = tf.constant(left / left.sum(), x.dtype)
    mean = tf.reduce_sum(x * weight, -1, keepdims=True)
    variance = tf.reduce_sum(tf.square(x - mean) * weight, -1, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + layer.epsilon) * layer.gamma + layer.beta


def train_step(model: keras.Model, images: np.ndarray) -> bool:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return bool(np.isfinite(copy.train_on_batch(images, np.arange(len(images)) % 10)))


def saved(model: keras.Model, images: np.ndarray) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        again = keras.models.load_model(path, compile=False)
    return bool(
        np.allclose(again.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-5)
    )


def int8(model: keras.Model, images: np.ndarray) -> str:
    """What the exported file looks like; agreement is not asked for with random weights."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = pathlib.Path(folder) / "model.tflite"
        report = tfc.export_tflite(
            model, path, calibration_data=images, allow_float=True, min_agreement=0.0
        )
    owners = set(report.float_tensors.values())
    kinds = sorted({type(layer).__name__ for layer in model.layers if layer.name in owners})
    return f"{report.num_bytes // 1024} KiB, float: {', '.join(kinds) or 'none'}"


def measure(name: str, target: float, export: bool) -> dict:
    keras.utils.set_random_seed(0)
    model = build(name)
    images = images_of(name, 4)
    dependencies = Dependencies(model)
    smaller = shrink(model, target_macs=target)
    row = {
        "family": f"{name}-{FAMILIES[name]}",
        "groups": len(dependencies.groups),
        "kept": len(dependencies.kept),
        "macs": f"{tfc.count_macs(smaller) / tfc.count_macs(model):.4f}",
        "parameters": f"{smaller.count_params() / model.count_params():.4f}",
        "oracle": f"{oracle(model, smaller, images):.1e}",
        "step": train_step(smaller, images),
        "saved": saved(smaller, images),
        "int8": int8(smaller, images) if export else "",
    }
    return row


def passes(row: dict, target: float) -> bool:
    near = abs(float(row["macs"]) - target) <= 0.02
    return near and float(row["oracle"]) <= 1e-5 and row["step"] and row["saved"]


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    rows = []
    with tfc.shared_converter():
        for name in _FAMILIES.value:
            start = time.time()
            row = measure(name, _TARGET.value, _EXPORT.value)
            rows.append({**row, "commit": commit()})
            print(rows[-1], f"{time.time() - start:.0f} s", flush=True)
            keras.backend.clear_session()
            if _OUTPUT.value:
                partial = pathlib.Path(_OUTPUT.value).with_suffix(".part")
                with partial.open("w", newline="") as file:
                    writer = csv.DictWriter(file, (*COLUMNS, "commit"))
                    writer.writeheader()
                    writer.writerows(rows)
                partial.replace(_OUTPUT.value)
    cells = [[row[column] for column in COLUMNS] for row in rows]
    print(render_table(f"Shrunk to {_TARGET.value:g} of the MACs", COLUMNS, cells))
    missed = [row["family"] for row in rows if not passes(row, _TARGET.value)]
    if missed:
        print(f"missed: {', '.join(missed)}")
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
