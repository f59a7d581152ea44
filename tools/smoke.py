"""The main jobs on small models, in a minute: prune, quantize, distil, export, run the file.

    python tools/smoke.py

It needs neither the tests nor what they install, so it says whether an environment will do.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import sys
import tempfile

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

import tfcompress as tfc

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "numpy", "absl-py", "tf_keras")


def convnet() -> keras.Model:
    image = keras.Input((12, 12, 1), name="image")
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(x))
    y = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 1)(y))
    x = keras.layers.Activation("silu")(keras.layers.Add()([x, y]))
    x = keras.layers.Concatenate()([keras.layers.MaxPooling2D()(x)] * 2)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(4, name="logits")(x))


def sequence_model() -> keras.Model:
    steps = keras.Input((8, 6), name="steps")
    x = keras.layers.LSTM(8, return_sequences=True)(steps)
    x = keras.layers.LayerNormalization()(x + keras.layers.MultiHeadAttention(2, 4)(x, x))
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(8, activation="gelu")(x))
    return keras.Model(steps, keras.layers.Dense(4, activation="softmax", name="classes")(x))


def run_file(path: pathlib.Path, x: np.ndarray) -> np.ndarray:
    """The outputs of a file in the bare runtime."""
    runtime = Interpreter(str(path))
    runtime.allocate_tensors()
    given, gives = runtime.get_input_details()[0], runtime.get_output_details()[0]
    scale, zero_point = given["quantization"]
    found = []
    for sample in x:
        codes = np.clip(np.round(sample / scale) + zero_point, -128, 127).astype(np.int8)
        runtime.set_tensor(given["index"], codes[None])
        runtime.invoke()
        found.append(runtime.get_tensor(gives["index"])[0])
    scale, zero_point = gives["quantization"]
    return (np.array(found, np.float32) - zero_point) * np.float32(scale)


def check(name: str, model: keras.Model, x: np.ndarray, y: np.ndarray, folder: str) -> None:
    """Prunes, quantizes, distils and exports a model, and runs its file."""
    logits = model.output_names == ["logits"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile("adam", loss)
    schedule = tfc.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=6, frequency=1)
    pruning = tfc.callbacks.Pruning(schedule, verbose=0)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[pruning])
    quantized = tfc.quantize(model, "int8", calibration_data=x)
    distiller = tfc.Distiller(model, quantized, [tfc.LogitsDistillation()])
    distiller.compile("adam", loss)
    distiller.fit(x, y, verbose=0)
    quantized.save(f"{folder}/{name}.keras")
    quantized = keras.models.load_model(f"{folder}/{name}.keras")
    path = pathlib.Path(folder, f"{name}.tflite")
    report = tfc.export_tflite(quantized, path, verify_data=x, min_agreement=0.9)
    expected = quantized.predict(x[:16], verbose=0)
    step = Interpreter(str(path)).get_output_details()[0]["quantization"][0]
    off = np.abs(run_file(path, x[:16]) - expected) / step
    print(
        f"{name}: {report.agreement:.2%} of the steps equal, at most {off.max():.1f} off in the "
        f"bare runtime; floats: {report.float_tensors or 'none'}"
    )
    if report.agreement < 0.99 or off.max() > 1.01:
        raise SystemExit(f"{name} differs from its file")


def main() -> None:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    print(f"Python {sys.version.split()[0]}, " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 64)
    with tempfile.TemporaryDirectory() as folder:
        images = rng.normal(size=(64, 12, 12, 1)).astype("float32") + y[:, None, None, None] / 4
        check("convnet", convnet(), images.astype("float32"), y, folder)
        steps = rng.normal(size=(64, 8, 6)).astype("float32")
        check("sequences", sequence_model(), steps, y, folder)
        packed = tfc.pack(tfc.cluster(convnet(), 4), f"{folder}/clustered.packed")
        print(f"clustered: {packed.num_bytes} bytes packed")


if __name__ == "__main__":
    main()
