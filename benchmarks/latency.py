"""Latency of float and int8 files in LiteRT on this machine's CPU, in turns.

Usage:
    python -m benchmarks.latency                          # builds float and int8 files itself
    python -m benchmarks.latency --models=a.tflite,b.tflite   # ratios to the first file

What counts is the ratio: the milliseconds are this machine's, at this hour. Weights are random, but
batch norm has seen data: without it the activations of a deep model die out, and XNNPACK leaves
ops whose scales differ by more than a factor of 1024 outside.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import platform
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
from absl import app, flags

from tfcompress.export import LatencyComparison, compare_latency, delegation

_MODELS = flags.DEFINE_list("models", [], "Paths of .tflite files; by default they are built.")
_ARCHITECTURES = flags.DEFINE_list("architectures", [], "Which to build; all by default.")
_THREADS = flags.DEFINE_list("threads", ["1", "2"], "Numbers of threads.")
_RUNS = flags.DEFINE_integer("runs", 100, "Rounds of each measurement.", lower_bound=1)


def _application(name: str, size: int, **arguments) -> Callable:
    def build():
        import keras

        constructor = getattr(keras.applications, name)
        shape = (size, size, 3)
        return constructor(input_shape=shape, weights=None, include_top=False, **arguments)

    return build


def _recipe(name: str, *shape: int) -> Callable:
    def build():
        from recipes import models

        return models.build(name, shape, 10)

    return build


#: Name → function that builds the Keras model.
ARCHITECTURES: dict[str, Callable] = {
    "mobilenet_v2_0.35_96": _application("MobileNetV2", 96, alpha=0.35, pooling="avg"),
    "mobilenet_v2_1.0_96": _application("MobileNetV2", 96, pooling="avg"),
    "mobilenet_v3_small_96": _application("MobileNetV3Small", 96, pooling="avg"),
    "efficientnet_v2_b0_96": _application("EfficientNetV2B0", 96, pooling="avg"),
    "resnet8": _recipe("resnet8", 32, 32, 3),
    "ds_cnn": _recipe("ds_cnn", 49, 10, 1),
    "lenet300": _recipe("lenet300", 28, 28, 1),
}


def cpu_name() -> str:
    """Returns the CPU's name, as the operating system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", "replace").splitlines():
            # "Hardware" is what 32-bit ARM kernels write.
            if line.startswith(("model name", "Hardware")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def build_files(name: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Builds one architecture and writes it in float, by Keras, and in int8, by this project.

    Args:
        name: A key of `ARCHITECTURES`.
        folder: Where to write.

    Returns:
        `{"float": path, "int8": path}`.

    Raises:
        ValueError: If the name is unknown.
    """
    import keras

    import tfcompress as tfc

    if name not in ARCHITECTURES:
        raise ValueError(f"Expected one of {', '.join(ARCHITECTURES)}. Received: {name!r}")
    keras.utils.set_random_seed(0)
    model = ARCHITECTURES[name]()
    shape = tuple(model.inputs[0].shape[1:])
    images = np.random.default_rng(0).uniform(0, 255, (32, *shape)).astype(np.float32)
    settle_batch_norm(model, images)
    paths = {kind: folder / f"{name}.{kind}.tflite" for kind in ("float", "int8")}
    signature = [keras.InputSpec(shape=(1, *shape), dtype="float32", name=model.inputs[0].name)]
    # The converter tells of its temporary folder.
    with contextlib.redirect_stdout(io.StringIO()):
        model.export(str(paths["float"]), format="litert", input_signature=signature)
        tfc.export_tflite(model, paths["int8"], calibration_data=images)
    return paths


def settle_batch_norm(model, images: np.ndarray) -> None:
    """Sets the moving statistics of every batch norm to those of `images`."""
    import keras

    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def report(name: str, files: dict[str, pathlib.Path], threads: Sequence[int], runs: int) -> str:
    """Measures the files against the first one and returns a few lines of text."""
    lines = [name]
    for label, path in files.items():
        found = delegation(path)
        outside = f", outside: {', '.join(found.ops_outside)}" if found.ops_outside else ""
        lines.append(f"  {label}: {found.num_partitions} XNNPACK partition(s){outside}")
    for count in threads:
        found: LatencyComparison = compare_latency(files, count, runs)
        lines += [f"  {line}" for line in str(found).splitlines()]
    return "\n".join(lines)


def _main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    threads = [int(count) for count in _THREADS.value]
    print(f"CPU: {cpu_name()}", flush=True)
    if _MODELS.value:
        files = {path: pathlib.Path(path) for path in _MODELS.value}
        print(report("files", files, threads, _RUNS.value))
        return
    for name in _ARCHITECTURES.value or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            files = build_files(name, pathlib.Path(folder))
            print(report(name, files, threads, _RUNS.value), flush=True)


if __name__ == "__main__":
    app.run(_main)
