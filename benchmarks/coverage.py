"""Every network of `keras.applications` in int8: does the file compute what the model does?

    python -m benchmarks.coverage                                # what has not been measured yet
    python -m benchmarks.coverage --models=MobileNet,VGG16       # these networks alone
    python -m benchmarks.coverage --print                        # the page of what was measured

Each network is built at the smallest input that it takes, 32 pixels where it can, with 10 classes
and without the softmax behind the logits. Weights are random, with batch-norm statistics of real
pictures, so that activations neither vanish nor explode with depth. The pictures are those of
CIFAR-10 (JPEG Q75) if `--data_dir` has them, else scikit-learn's digits; they are resized, and
preprocessed as the network demands.

| column     | what it is                                                                          |
|------------|-------------------------------------------------------------------------------------|
| pixels     | height and width of the input                                                       |
| plan       | CPU seconds of `tfc.plan`                                                           |
| quantize   | CPU seconds of `tfc.quantize` with 64 pictures                                      |
| step       | CPU seconds of `compile` and `fit` on one batch of 8, over those of the float model |
| export     | CPU seconds of `tfc.export_tflite`, its converter process included                  |
| float      | tensors in float in the file                                                        |
| partitions | of the graph, that XNNPACK runs                                                     |
| outside    | operators that XNNPACK leaves to the interpreter                                    |
| equal      | % of the outputs whose codes are those of the quantized Keras model, 128 pictures   |
| largest    | the largest difference between these codes                                          |
| codes      | how many different codes the outputs have: few prove little                         |
| KiB        | size of the file                                                                    |
| GiB        | peak memory of the process and of its converter process at one time                 |

The float model trains in a process of its own. In rows up to 82994ae it did so in the same one: its
memory is in theirs, and its step, the first of the process, paid for what TensorFlow sets up.
Memory of rows up to 6b036e8 is the sum of the two processes' own peaks, which is more.

A fresh process measures each network. Its row is appended to `--csv` at once and the page is
written anew; a network that has a row is not measured again, unless `--again` is given.
"""

from __future__ import annotations

import collections
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.process_memory import PeakMemory
from recipes import origin
from recipes.results import Results, markdown

ROOT = pathlib.Path(__file__).parents[1]
TABLE = ROOT / "recipes" / "results" / "coverage.csv"
PAGE = ROOT / "docs" / "coverage.md"
SIZE, CLASSES, BATCH = 32, 10, 8
#: How many pictures serve what.
STATISTICS, CALIBRATION, COMPARED = 256, 64, 128
COLUMNS = (
    *("commit", "family", "model", "pixels", "parameters", "plan", "quantize", "float_step"),
    *("step", "export", "float_tensors", "partitions", "outside", "equal", "largest", "codes"),
    *("num_bytes", "peak_bytes"),
)


def applications() -> dict[str, str]:
    """Network → family, the module of `keras.applications` that it is in."""
    import keras

    found = {}
    for name, function in vars(keras.applications).items():
        if inspect.isfunction(function) and "weights" in inspect.signature(function).parameters:
            found[name] = function.__module__.rpartition(".")[2]
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def smallest(name: str):
    """The network at the smallest input it takes, with random weights."""
    import keras

    function, size = getattr(keras.applications, name), SIZE
    options = {"weights": None, "classes": CLASSES, "classifier_activation": None}
    try:
        return function(input_shape=(size, size, 3), **options)
    except ValueError as error:
        least = re.search(r"at least (\d+)", str(error))
        if least is None:
            raise
        size = int(least[1])
    return function(input_shape=(size, size, 3), **options)


def pictures(model, family: str, images: np.ndarray) -> np.ndarray:
    """uint8 images at the size of a model's input, as its family preprocesses them."""
    import keras
    import tensorflow as tf

    size = model.input_shape[1:3]
    resized = tf.round(tf.image.resize(images.astype(np.float32), size)).numpy()
    return getattr(keras.applications, family).preprocess_input(resized)


def randomize(model, images: np.ndarray) -> None:
    """Scales, offsets and statistics as after training, in place; kernels stay as they are."""
    import keras

    import tfcompress as tfc

    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, (keras.layers.BatchNormalization, keras.layers.LayerNormalization)):
            if layer.gamma is not None:
                layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.1, layer.beta.shape))
        elif type(layer).__name__ == "LayerScale":
            # It starts at 1e-6, with which its branch is nothing.
            layer.gamma.assign(rng.uniform(0.05, 0.2, layer.gamma.shape))
    if any(isinstance(la, keras.layers.BatchNormalization) for la in model.layers):
        tfc.reestimate_batch_norm(model, images)


def build(name: str, train: np.ndarray):
    """A network as it is measured, and the pictures of its statistics."""
    import keras

    keras.utils.set_random_seed(0)
    model = smallest(name)
    data = pictures(model, applications()[name], train[:STATISTICS])
    randomize(model, data)
    return model, data


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, in this process and in those that ended within it, and its result."""
    start = sum(os.times()[:4])
    result = function()
    return sum(os.times()[:4]) - start, result


def step(model, data: np.ndarray) -> None:
    """Compiles a network and trains it on one batch."""
    import keras

    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data[:BATCH], np.arange(BATCH) % CLASSES, batch_size=BATCH, verbose=0)


def measure_float(name: str, train: np.ndarray) -> dict[str, Any]:
    """The part of a row that is about the float model."""
    model, data = build(name, train)
    return {"float_step": f"{cpu_seconds(lambda: step(model, data))[0]:.2f}"}


def measure(name: str, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """The row of a network, but for its commit, its memory and the step of the float model.

    Args:
        name: Of `applications()`.
        train: uint8 images of three channels, at least `STATISTICS`.
        test: Likewise, at least `COMPARED`.
    """
    import tfcompress as tfc

    family = applications()[name]
    model, data = build(name, train)
    compared = pictures(model, family, test[:COMPARED])
    seconds = {}

    def timed(quantity: str, function: Callable[[], Any]) -> Any:
        seconds[quantity], result = cpu_seconds(function)
        return result

    timed("plan", lambda: tfc.plan(model))
    quantized = timed("quantize", lambda: tfc.quantize(model, calibration_data=data[:CALIBRATION]))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        options = {"allow_float": True, "min_agreement": 0.0}
        report = timed(
            "export", lambda: tfc.export_tflite(quantized, path, verify_data=compared, **options)
        )
    # Training changes the weights, so it comes last.
    timed("step", lambda: step(quantized, data))
    (parity,) = report.parity["serving_default"]
    outside = collections.Counter(report.ops_outside)
    return {
        "family": family,
        "model": name,
        "pixels": model.input_shape[1],
        "parameters": model.count_params(),
        **{key: f"{value:.2f}" for key, value in seconds.items()},
        "float_tensors": len(report.float_tensors),
        "partitions": report.num_partitions,
        "outside": " ".join(f"{count}×{op}" for op, count in sorted(outside.items())),
        "equal": f"{100 * parity.equal:.2f}",
        "largest": f"{parity.largest:g}",
        "codes": parity.distinct,
        "num_bytes": report.num_bytes,
    }


# --- the page --------------------------------------------------------------------------------

_HEADS = (
    *("network", "pixels", "plan", "quantize", "step", "export", "float", "partitions"),
    *("outside", "equal", "largest", "codes", "KiB", "GiB", "commit"),
)


def latest(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The last row of each network, by family."""
    return sorted({row["model"]: row for row in rows}.values(), key=lambda r: r["family"])


def cells(row: Mapping[str, str]) -> tuple[str, ...]:
    """A row of the page's table."""
    return (
        row["model"],
        row["pixels"],
        row["plan"],
        f"{float(row['quantize']):.1f}",
        f"{float(row['step']) / float(row['float_step']):.2f}",
        f"{float(row['export']):.1f}",
        row["float_tensors"],
        row["partitions"],
        row["outside"] or "none",
        row["equal"],
        row["largest"],
        row["codes"],
        f"{int(row['num_bytes']) / 1024:.0f}",
        f"{int(row['peak_bytes']) / 2**30:.1f}",
        row["commit"],
    )


def page(rows: Iterable[Mapping[str, str]]) -> str:
    """`docs/coverage.md`."""
    found = latest(rows)
    description = (__doc__ or "").partition("\n\n")[2].partition("A fresh process")[0]
    usage, _, columns = description.partition("Each network")
    families = len({row["family"] for row in found})
    return (
        "# keras.applications in int8\n\n"
        f"Networks: {len(found)}; families: {families}. Written by\n\n"
        f"```bash\n{_unindented(usage)}\n```\n\n"
        f"from `recipes/results/{TABLE.name}`; the last column is the commit that was measured.\n\n"
        f"Each network{columns.rstrip()}\n\n"
        f"{markdown(_HEADS, map(cells, found))}\n"
    )


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


# --- command ---------------------------------------------------------------------------------


def uint8_images(data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Pictures for statistics and calibration, and others to compare on."""
    from tfcompress.tools import datasets

    if data_dir or os.environ.get("TFCOMPRESS_DATA"):
        (train, _), (test, _) = datasets.load("cifar10", data_dir)
    else:
        (train, _), (test, _) = datasets.load("digits")
        train, test = (np.repeat(x * 255, 3, axis=-1) for x in (train, test))
    return train[:STATISTICS].astype(np.uint8), test[:COMPARED].astype(np.uint8)


def run_child(name: str, images: pathlib.Path, is_float: bool = False) -> dict[str, Any]:
    """`measure` or `measure_float` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.coverage", f"--child={name}:{images}"]
    command += ["--float"] if is_float else []
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def define_flags() -> None:
    flags.DEFINE_list("models", None, "Networks; by default all of keras.applications.")
    flags.DEFINE_bool("again", False, "Measure again what has a row of another commit.")
    flags.DEFINE_string("data_dir", None, "Folder of the data sets; default $TFCOMPRESS_DATA.")
    flags.DEFINE_string("csv", str(TABLE), "The table.")
    flags.DEFINE_string("page", str(PAGE), "The page that is written from it.")
    flags.DEFINE_string("commit", None, "Name of the measured code; by default git's.")
    flags.DEFINE_bool("print", False, "Only write and print the page of what was measured.")
    flags.DEFINE_bool("float", False, "Internal: of a child, measure the float model alone.")
    flags.DEFINE_string("child", None, "Internal: measure `model:images.npz` and print JSON.")


def main(argv: list[str]) -> None:
    del argv
    settings = flags.FLAGS
    if settings.child:
        name, _, path = settings.child.partition(":")
        with np.load(path) as images:
            if settings.float:
                print(json.dumps(measure_float(name, images["train"])))
                return
            with PeakMemory() as peak:
                row = measure(name, images["train"], images["test"])
            print(json.dumps({**row, "peak_bytes": peak.highest}))
        return
    results = Results(pathlib.Path(settings.csv), ("model",))
    output = pathlib.Path(settings.page)
    if settings.print:
        output.write_text(page(results.rows), encoding="utf-8")
        print(output.read_text(encoding="utf-8"))
        return
    commit, failed = settings.commit or origin.commit(), []
    with tempfile.TemporaryDirectory() as folder:
        images = pathlib.Path(folder) / "images.npz"
        train, test = uint8_images(settings.data_dir)
        np.savez(images, train=train, test=test)
        for name in settings.models or applications():
            known = {row["commit"] for row in results.rows if row["model"] == name}
            if commit in known or (known and not settings.again):
                continue
            start = time.time()
            try:
                row = run_child(name, images) | run_child(name, images, is_float=True)
            except RuntimeError as error:
                failed.append(name)
                print(error, flush=True)
                continue
            row["commit"] = commit
            results.add(**{column: row[column] for column in COLUMNS})
            output.write_text(page(results.rows), encoding="utf-8")
            print(f"{time.time() - start:.0f} s: {row}", flush=True)
    print(output.read_text(encoding="utf-8"))
    if failed:
        print(f"failed: {', '.join(failed)}")
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    app.run(main)
