"""The networks and their training, the same in Keras 3 and in the legacy Keras."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.peers_parts.job import Job, scaled
from recipes.batches import BATCH, augmented, batches
from recipes.legacy import arrays_of, resnet8

# Of the measurement of a step.
_ROUNDS, _STEPS, _IMAGES = 15, 2, 64


def network(keras: Any, task: str, weights: str | None) -> Any:
    """The network of a task, on scaled pixels, ending in logits.

    Args:
        keras: Keras 3 or the legacy Keras.
        task: `"mnist"`: two convolutions of 32 and 64 filters with pooling, and a dense layer.
            `"cifar10"`: the ResNet-8 of MLPerf Tiny.
        weights: An `.npz` of its arrays, or `None` for fresh ones.
    """
    if task == "cifar10":
        # It has no fresh weights: training starts from a given model.
        return resnet8(keras, weights)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    if weights is not None:
        with np.load(weights) as file:
            model.set_weights([file[f"arr_{i}"] for i in range(len(file.files))])
    return model


def save_arrays(model: Any, task: str, path: str) -> None:
    """Writes the weights of a network in the order in which `network` takes them."""
    np.savez(path, *(arrays_of(model) if task == "cifar10" else model.get_weights()))


def train(keras: Any, model: Any, job: Job, epochs: int | None = None, callbacks: Any = ()) -> None:
    """Trains a model: Adam, a cosine decay, the same batches for the same seed.

    Args:
        keras: The Keras that the model is of.
        model: The model.
        job: Gives data, seed, rate and epochs.
        epochs: By default those of the job.
        callbacks: For `fit`.
    """
    (x, y), _ = job.data()
    if job.task == "mnist":
        data = batches(scaled(job.task, x), y, job.seed)
    else:
        # The pipeline augments pixels as they are.
        data = augmented(x, y, job.seed).map(lambda images, labels: (images / 127.5 - 1, labels))
    epochs = job.epochs if epochs is None else epochs
    decay = keras.optimizers.schedules.CosineDecay(job.rate, epochs * len(data))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(decay), loss)
    model.fit(data, epochs=epochs, verbose=2, callbacks=list(callbacks))


def steps(job: Job) -> int:
    """Of the training that every method has in common."""
    (x, _), _ = job.data()
    return job.epochs * (len(x) // BATCH)


def step_ratio(keras: Any, floating: Any, quantized: Any, task: str) -> float:
    """CPU time of a training step over that of a float one: median of rounds in turns."""
    random = np.random.default_rng(0)
    shape = (_IMAGES, *floating.inputs[0].shape[1:])
    x = random.uniform(-1, 1, shape).astype(np.float32)
    y = random.integers(0, 10, _IMAGES).astype(np.int32)
    for model in (floating, quantized):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.0), loss)
        model.train_on_batch(x, y)
    ratios = []
    for turn in range(_ROUNDS):
        seconds = {}
        for i in (turn % 2, (turn + 1) % 2):
            start = time.process_time()
            for _ in range(_STEPS):
                (floating, quantized)[i].train_on_batch(x, y)
            seconds[i] = time.process_time() - start
        ratios.append(seconds[1] / seconds[0])
    return float(np.median(ratios))
