"""Checksums of exported files, so that a change of the code's structure can be held to equal bytes.

    python -m benchmarks.golden --write=golden.json      # before
    python -m benchmarks.golden --compare=golden.json    # after

The models are untrained and seeded, with statistics and calibration of random data. Checksums are
of one machine and one set of packages: float rounding differs elsewhere. So the list is not kept.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags
from keras import layers

import tfcompress as tfc
from recipes.models import resnet8

_WRITE = flags.DEFINE_string("write", None, "File that the checksums are written to.")
_COMPARE = flags.DEFINE_string("compare", None, "File of earlier checksums.")
_ONLY = flags.DEFINE_list("only", None, "Names of the models; all where none is given.")


# Without what is on by default, so that a change of the default leaves the files as they are.
_quantize = functools.partial(tfc.quantize, bias_correction=False)


def _data(shape: tuple[int, ...], count: int = 16) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (count, *shape)).astype(np.float32)


def _settled(model: keras.Model) -> keras.Model:
    """With random biases and batch-norm statistics, as after a training."""
    rng = np.random.default_rng(2)
    for layer in model._flatten_layers():
        for variable in layer.weights:
            name = variable.name
            if name in ("bias", "beta", "moving_mean"):
                variable.assign(rng.normal(0, 0.1, variable.shape))
            elif name in ("gamma", "moving_variance"):
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def _mobilenet_v2():
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)
    return _quantize(_settled(model), calibration_data=_data((32, 32, 3)))


def _resnet8():
    inputs = keras.Input((32, 32, 3), name="image")
    model = _settled(keras.Model(inputs, resnet8(inputs, 10)))
    return _quantize(model, calibration_data=127.5 + 60 * _data((32, 32, 3)))


def _dense() -> keras.Model:
    stack = [keras.Input((40,)), layers.Dense(64, "relu"), layers.Dense(32, "tanh")]
    return _settled(keras.Sequential([*stack, layers.Dense(10)]))


def _w4a8():
    return _quantize(_dense(), "w4a8", calibration_data=_data((40,)))


def _small_cnn() -> keras.Model:
    stack = [keras.Input((16, 16, 3)), layers.Conv2D(16, 3, use_bias=False, padding="same")]
    stack += [layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D()]
    stack += [layers.SeparableConv2D(24, 3, activation="relu6"), layers.Flatten()]
    return _settled(keras.Sequential([*stack, layers.Dense(10, "softmax")]))


def _clustered():
    stack = [keras.Input((16, 16, 3)), layers.Conv2D(16, 3, use_bias=False, padding="same")]
    stack += [layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(24, 3, activation="relu")]
    stack += [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    clustered = tfc.cluster(_settled(keras.Sequential(stack)), 16)
    return _quantize(clustered, calibration_data=_data((16, 16, 3)))


def _pruned():
    model = _small_cnn()
    for layer in model.layers:
        for variable in layer.weights:
            if "kernel" in variable.name:
                value = variable.numpy()
                variable.assign(np.where(np.abs(value) < np.median(np.abs(value)), 0, value))
    return _quantize(model, calibration_data=_data((16, 16, 3)))


def _two_signatures():
    base = _small_cnn()
    features = base.layers[-2].output
    heads = [keras.Model(base.inputs, layers.Dense(4, name=n)(features)) for n in ("a", "b")]
    data = _data((16, 16, 3))
    return {
        m.outputs[0].name[:1] + str(i): _quantize(m, calibration_data=data)
        for i, m in enumerate(heads)
    }


def _activations():
    x = inputs = keras.Input((16, 16, 8))
    y = layers.Conv2D(8, 3, padding="same")(x)
    y = layers.PReLU(shared_axes=[1, 2], alpha_initializer="uniform")(y)
    x = layers.Add()([x, y])
    x = layers.AveragePooling2D(2)(layers.Conv2D(8, 1, activation="silu")(x))
    x = layers.AveragePooling2D(3, 1, "same")(x)
    x = layers.Activation("hard_silu")(layers.DepthwiseConv2D(3)(x))
    x = layers.Concatenate()([x, layers.Activation("sigmoid")(x)])
    x = layers.LeakyReLU()(layers.Conv2DTranspose(6, 3, strides=2)(x))
    x = layers.GlobalAveragePooling2D()(layers.UpSampling2D()(x))
    model = _settled(keras.Model(inputs, layers.Dense(5)(x)))
    return _quantize(model, calibration_data=_data((16, 16, 8)))


def _conv1d():
    stack = [keras.Input((32, 4)), layers.Conv1D(8, 5, activation="relu"), layers.MaxPooling1D()]
    stack += [layers.Conv1D(12, 3, padding="causal"), layers.BatchNormalization(), layers.ReLU()]
    stack += [layers.SeparableConv1D(8, 3), layers.GlobalAveragePooling1D(), layers.Dense(6)]
    return _quantize(_settled(keras.Sequential(stack)), calibration_data=_data((32, 4)))


def _options():
    """A layer in float, a percentile, power-of-two scales, correction and equalization."""
    config = tfc.QuantizationConfig(
        by_type={"Dense": None},
        by_name={
            "sep.*": tfc.Scheme(
                weights=tfc.WeightScheme(per_channel=False, power_of_two=True),
                activations=tfc.ActivationScheme(observer=tfc.Percentile(99.0)),
            )
        },
    )
    model = keras.models.clone_model(
        _small_cnn(),
        clone_function=lambda layer: (
            type(layer).from_config({**layer.get_config(), "name": "sep"})
            if isinstance(layer, layers.SeparableConv2D)
            else type(layer).from_config(layer.get_config())
        ),
    )
    return tfc.quantize(
        _settled(model),
        config,
        calibration_data=_data((16, 16, 3)),
        equalize=True,
        bias_correction=True,
    )


MODELS: dict[str, Callable] = {
    name.lstrip("_"): function
    for name, function in list(globals().items())
    if name
    in (
        "_mobilenet_v2",
        "_resnet8",
        "_w4a8",
        "_clustered",
        "_pruned",
        "_two_signatures",
        "_activations",
        "_conv1d",
        "_options",
    )
}


def checksum(name: str, folder: pathlib.Path) -> dict:
    """Exports one model: checksum of the file, and what its report says of agreement."""
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()
    model = MODELS[name]()
    path = folder / f"{name}.tflite"
    report = tfc.export_tflite(model, path, allow_float=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "sha256": digest,
        "bytes": path.stat().st_size,
        "agreement": report.agreement,
        "float_tensors": len(report.float_tensors),
    }


def main(_) -> None:
    names = _ONLY.value or list(MODELS)
    with tempfile.TemporaryDirectory() as folder, tfc.shared_converter():
        found = {}
        for name in names:
            found[name] = checksum(name, pathlib.Path(folder))
            print(name, found[name], flush=True)
    if _WRITE.value:
        pathlib.Path(_WRITE.value).write_text(json.dumps(found, indent=1) + "\n")
    if _COMPARE.value:
        before = json.loads(pathlib.Path(_COMPARE.value).read_text())
        other = [name for name in names if before.get(name) != found[name]]
        print("Different: " + ", ".join(other) if other else f"All {len(names)} files are equal.")
        raise SystemExit(bool(other))


if __name__ == "__main__":
    app.run(main)
