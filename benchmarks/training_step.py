"""What quantization-aware training costs per step: QAT / float, ours and tfmot's.

Usage:
    python -m benchmarks.training_step

In one process the candidates train on the same batch in turns, in a rotating order; a ratio is
taken within a round and its median and quartiles over the rounds are printed, in elapsed time and
in CPU time over all threads, which other programs hardly touch. tfmot needs tf_keras (Keras 2) and
runs the same architectures in a process of its own, so only its ratio compares.

| candidate         | what it is                                                       |
|-------------------|------------------------------------------------------------------|
| `moving`          | `tfc.quantize`, ranges and batch norm moving                      |
| `frozen`          | the same with ranges and batch-norm statistics frozen             |
| `moving, BN only` | float with our fused batch norm: how much of the gain is its      |
| `tfmot`           | `tfmot.quantization.keras.quantize_model`, over float in tf_keras |
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

_ROUNDS = flags.DEFINE_integer("rounds", 15, "Rounds.", lower_bound=3)
_STEPS = flags.DEFINE_integer("steps", 2, "Steps timed in a turn.", lower_bound=1)
_MODELS = flags.DEFINE_list("models", ["resnet8", "mobilenet_v2"], "Architectures.")
_PEER = flags.DEFINE_bool("peer", False, "Internal: run the part of tfmot and print JSON.")

# Architecture → (input shape, batch size).
SHAPES = {"resnet8": ((32, 32, 3), 64), "mobilenet_v2": ((96, 96, 3), 32)}


def float_model(keras, name: str):
    """The architecture in the given Keras; softmax-free and without preprocessing layers."""
    shape, _ = SHAPES[name]
    if name == "mobilenet_v2":
        return keras.applications.MobileNetV2(
            input_shape=shape, alpha=0.35, weights=None, classes=10, classifier_activation=None
        )
    layers = keras.layers

    def block(x, filters, size, strides=1, relu=True):
        x = layers.Conv2D(filters, size, strides, padding="same")(x)
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if relu else x

    inputs = keras.Input(shape)
    x = block(inputs, 16, 3)
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = block(block(x, filters, 3, strides), filters, 3, relu=False)
        if strides > 1:
            x = layers.Conv2D(filters, 1, strides, padding="same")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def stepper(keras, model, name: str):
    """A function that runs the timed steps of one turn through `model.train_function`."""
    import tensorflow as tf

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss, jit_compile=False)
    shape, batch = SHAPES[name]
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (batch, *shape)).astype(np.float32)
    y = random.integers(0, 10, batch).astype(np.int32)
    model.make_train_function()
    data = iter(tf.data.Dataset.from_tensors((x, y)).repeat())

    def run() -> None:
        for _ in range(_STEPS.value):
            logs = model.train_function(data)
        for value in logs.values() if isinstance(logs, dict) else [logs]:
            np.asarray(value)

    return run


def measure(runs: dict) -> dict[str, np.ndarray]:
    """Candidate → (rounds, 2) elapsed and CPU seconds per turn."""
    times = {name: [] for name in runs}
    names = list(runs)
    for round_number in range(_ROUNDS.value + 2):
        for name in names[round_number % len(names) :] + names[: round_number % len(names)]:
            start = time.perf_counter(), time.process_time()
            runs[name]()
            end = time.perf_counter(), time.process_time()
            if round_number >= 2:  # The first rounds warm up.
                times[name].append((end[0] - start[0], end[1] - start[1]))
    return {name: np.array(values) for name, values in times.items()}


def ratios(times: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Candidate → median, lower and upper quartile of time, then the same of CPU time, to float."""
    result = {}
    for name, values in times.items():
        if name != "float":
            quotient = values / times["float"]
            quartiles = np.quantile(quotient, (0.5, 0.25, 0.75), axis=0)
            result[name] = [float(v) for v in quartiles.T.ravel()]
    return result


def ours(name: str) -> dict[str, list[float]]:
    import keras

    import tfcompress as tfc
    from tfcompress.model import Graph, rebuild
    from tfcompress.quantization.operators.batch_norm import quantized_batch_norm

    model = float_model(keras, name)
    shape, batch = SHAPES[name]
    data = np.random.default_rng(1).uniform(-1, 1, (batch, *shape)).astype(np.float32)
    graph = Graph.from_model(model)
    norms = [o for o in graph.operations() if isinstance(o, keras.layers.BatchNormalization)]
    fused = rebuild(graph, {norm: quantized_batch_norm(norm) for norm in norms})
    moving = tfc.quantize(model, calibration_data=data)
    frozen = tfc.quantize(model, calibration_data=data)
    schedule = tfc.callbacks.QuantizationSchedule(0, 0, 0)
    schedule.set_model(frozen)
    schedule.update(1)
    candidates = {"float": model, "moving": moving, "frozen": frozen, "moving, BN only": fused}
    return ratios(measure({k: stepper(keras, m, name) for k, m in candidates.items()}))


def tfmot(name: str) -> dict[str, list[float]]:
    import tensorflow_model_optimization as peer
    import tf_keras

    model = float_model(tf_keras, name)
    quantized = peer.quantization.keras.quantize_model(float_model(tf_keras, name))
    candidates = {"float": model, "tfmot": quantized}
    return ratios(measure({k: stepper(tf_keras, m, name) for k, m in candidates.items()}))


def peer_process(name: str) -> dict[str, list[float]]:
    """The ratios of tfmot, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training_step", "--peer"]
    command += [f"--rounds={_ROUNDS.value}", f"--steps={_STEPS.value}"]
    command.append(f"--models={name}")
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The process of tfmot failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(argv) -> None:
    del argv
    if _PEER.value:
        print(json.dumps(tfmot(_MODELS.value[0])))
        return
    from tfcompress.model import render_table

    columns = ("candidate", "time / float [quartiles]", "CPU time / float")
    for name in _MODELS.value:
        rows = []
        for candidate, (t, t1, t3, c, c1, c3) in {**ours(name), **peer_process(name)}.items():
            wall, cpu = f"{t:.3f} [{t1:.3f}, {t3:.3f}]", f"{c:.3f} [{c1:.3f}, {c3:.3f}]"
            rows.append((candidate, wall, cpu))
        title = f"Training step of {name}, {_ROUNDS.value} interleaved rounds"
        print(render_table(title, columns, rows), flush=True)


if __name__ == "__main__":
    app.run(main)
