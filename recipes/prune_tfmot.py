"""tfmot's gradual pruning on the same weights: run by `prune.py` in a process of its own."""

from __future__ import annotations

import sys
from typing import Any

from recipes.legacy import resnet8, run_module, scaled


def in_subprocess(
    model: Any, data: tuple, sparsity: float, epochs: int, seed: int, rate: float
) -> tuple[float, float, float]:
    """Runs `prune` on the weights of a Keras 3 model, in a process of its own.

    Args:
        model: The ResNet-8 of `recipes.models`, or one whose layers were made in its order.
        data: `(x_train, y_train), (x_test, y_test)`.
        sparsity: See `prune`, and so the rest.
        epochs: Epochs.
        seed: Seed.
        rate: Learning rate.
    """
    line = run_module("recipes.prune_tfmot", model, data, sparsity, epochs, seed, rate)
    before, after, zeros = map(float, line.split()[1:])
    return before, after, zeros


def prune(
    weights: str, data: str, sparsity: float, epochs: int, seed: int, rate: float
) -> tuple[float, float, float]:
    """Returns the test error before and after (per cent), and the fraction of zeros.

    Args:
        weights: An `.npz` of the ResNet-8's arrays in the order of creation.
        data: An `.npz` with `x_train`, `y_train`, `x_test`, `y_test`.
        sparsity: Final sparsity.
        epochs: Epochs of pruning.
        seed: Seed of weights, shuffling and augmentation.
        rate: Learning rate at the start of the cosine decay.
    """
    import tensorflow as tf

    # Touched before tfmot is imported, `tf.keras` stays what it is.
    _ = tf.keras.layers
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from recipes.batches import augmented, load_arrays

    tf_keras.utils.set_random_seed(seed)
    (x, y), (x_test, y_test) = load_arrays(data)
    x_test = scaled(x_test)
    model = resnet8(tf_keras, weights)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    before = 1 - model.evaluate(x_test, y_test, batch_size=500, verbose=0)[1]
    batches = augmented(x, y, seed).map(lambda image, label: (scaled(image), label))
    steps = epochs * len(batches)
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        0.0, sparsity, 0, int(0.7 * steps), frequency=_frequency(steps)
    )
    pruned = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
    decay = tf_keras.optimizers.schedules.CosineDecay(rate, steps)
    pruned.compile(tf_keras.optimizers.Adam(decay), loss, metrics=["accuracy"])
    update = tfmot.sparsity.keras.UpdatePruningStep()
    pruned.fit(batches, epochs=epochs, verbose=2, callbacks=[update])
    model = tfmot.sparsity.keras.strip_pruning(pruned)
    model.compile("sgd", loss, metrics=["accuracy"])
    after = 1 - model.evaluate(x_test, y_test, batch_size=500, verbose=0)[1]
    kernels = [w.numpy() for w in model.trainable_weights if "kernel" in w.name]
    zeros = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
    return 100 * before, 100 * after, float(zeros)


def _frequency(steps: int) -> int:
    # A divisor of the length of the schedule: tfmot has no update at its end otherwise.
    length = int(0.7 * steps)
    return max(d for d in range(1, 101) if length % d == 0)


if __name__ == "__main__":
    weights, data, sparsity, epochs, seed, rate = sys.argv[1:]
    result = prune(weights, data, float(sparsity), int(epochs), int(seed), float(rate))
    print("result", *result)
