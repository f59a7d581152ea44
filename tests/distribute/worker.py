"""What the workers of test_distribute.py run, each in a process of its own, and one alone."""

import hashlib
import os
import pathlib
import signal
import time
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from benchmarks.gradient_traffic import Handed
from recipes import distributed

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = (X @ np.random.default_rng(1).normal(size=(6, 2))).astype("float32")


def batches():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.with_options(options)


def is_alone():
    return "TF_CONFIG" not in os.environ


def make(strategy, seed=0, gradient_bits=0, scaled=False):
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((6,)), layers.Dense(16, "relu", name="a"), layers.Dense(2, name="b")]
        )
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        if gradient_bits:
            optimizer = tfc.QuantizedGradients(optimizer, gradient_bits, per_channel=True)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
        model.compile(optimizer, "mse", metrics=["mae"])
    return model


def train_float(strategy):
    """A float model, pruned, with `evaluate`."""
    model = make(strategy)
    if not is_alone():
        # Twice is as good as once.
        tfc.distribute.across_workers(tfc.distribute.across_workers(model))
    pruning = tfc.callbacks.Pruning(tfc.ConstantSparsity(0.5, begin_step=2), layers="a", verbose=0)
    data = batches()
    history = model.fit(data, epochs=3, callbacks=[pruning], shuffle=False, verbose=0).history
    state = [np.asarray(v) for v in (*model.weights, *model.optimizer.variables)]
    return {
        "chief": tfc.distribute.is_chief(),
        "losses": history["loss"],
        "evaluated": model.evaluate(data, verbose=0),
        "digest": hashlib.sha256(b"".join(value.tobytes() for value in state)).hexdigest(),
        "zeros": (np.asarray(model.get_layer("a").kernel) == 0).tolist(),
    }


A, B, NAN = (X[:8], Y[:8]), (X[8:16], Y[8:16]), (X[:8] * np.nan, Y[:8])
EMPTY = (X[:0], Y[:0])
#: What each of two workers has as `data`, and what one worker alone has in its place.
SHARDS = {
    "the same": (([A], [A]), [A]),
    "one each": (([A], [B]), [A, B]),
    "an empty list": (([A], []), [A]),
    "an empty batch": (([EMPTY], [EMPTY, A]), [A]),
    "not a number": (([A, B], [A, NAN]), [A, NAN]),
}
#: Criterion → who asks for it, and with which of these.
CRITERIA = {
    "taylor": (tfc.Pruner, ["the same", "one each", "not a number"]),
    "entropy": (tfc.Pruner, ["an empty batch"]),
    "RigL": (tfc.Pruner, ["an empty list"]),
    "apoz": (tfc.ChannelPruner, ["one each", "an empty list"]),
    "activation_mean": (tfc.ChannelPruner, ["an empty batch"]),
}


def masks_from_shards(strategy, task):
    """Masks by criteria that read data, of which each worker has a part of its own, or none."""
    found = {}
    for criterion, (pruner, cases) in CRITERIA.items():
        model = make(strategy, seed=1)
        schedule = tfc.ConstantSparsity(0.5, begin_step=0)
        options = {"criterion": criterion, "scoring": tfc.ScoringOptions(num_batches=2)}
        if criterion == "RigL":
            # Reads gradients for what it lets grow.
            schedule, options = tfc.RigL(0.5, 10, frequency=1), {}
        if pruner is tfc.ChannelPruner:
            options["round_to"] = 1
        else:
            options["layers"] = "a"
        start = model.get_weights()
        for name in cases:
            shards, alone = SHARDS[name]
            model.set_weights(start)
            data = alone if is_alone() else shards[task]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with pruner(model, schedule, data=data, **options) as used:
                    used.update(0)
                    used.update(1)
            kernel = np.asarray(model.get_layer("a").kernel)
            found[criterion, name] = (kernel == 0).astype(int).tolist()
            found[criterion, name, "warned"] = any("finite" in str(w.message) for w in caught)
    return found


def quantized_gradients(strategy):
    """Bytes that a worker hands to the collectives for its gradients, and what they were to be."""
    handed = Handed()
    model = make(strategy, gradient_bits=4)
    tfc.distribute.across_workers(model)
    losses = model.fit(batches(), epochs=3, shuffle=False, verbose=0).history["loss"]
    traffic = tfc.distribute.gradient_traffic(model)
    return {"losses": losses, "handed": handed.bytes, **traffic.to_dict()}


def overflow_on_one(strategy):
    """The loss scale after a step in which one worker overflows, and whether weights moved."""
    model = make(strategy, gradient_bits=8, scaled=True)
    tfc.distribute.across_workers(tfc.distribute.across_workers(model))
    before = model.get_weights()
    x = X[:16].copy()
    # In the half of the second worker.
    x[-1] = 1e30
    model.fit(x, Y[:16], batch_size=16, shuffle=False, verbose=0)
    pairs = zip(before, model.get_weights(), strict=True)
    moved = any((a != b).any() for a, b in pairs)
    return [float(model.optimizer.dynamic_scale.numpy()), moved]


def other_weights_are_refused(strategy, task):
    """What is said of a model that is not the same on all workers."""
    model = make(strategy)
    model.get_layer("b").bias.assign([0.0, float(task)])
    try:
        tfc.distribute.across_workers(model)
    except ValueError as error:
        return str(error)


class Kill(keras.callbacks.Callback):
    """Ends the process at a step without a chance to tidy up."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_recipe(folder, killed_at=None):
    """The recipe on a part of its data: two epochs of eight steps; a backup at every tenth.

    Workers send each other codes of 8 bits, and each keeps what rounding has taken away.
    """
    callbacks = [] if killed_at is None else [Kill(killed_at)]
    folder = pathlib.Path(folder)
    options = {"sparsity": 0.5, "samples": 512, "gradient_bits": 8}
    return distributed.train(folder, 2, callbacks=callbacks, **options)


def wait_for_the_other(folder, task, seconds=60):
    """Waits until both workers are done: an early exit breaks the other's last collective."""
    (folder / f"done-{task}").touch()
    end = time.monotonic() + seconds
    while not (folder / f"done-{1 - task}").exists() and time.monotonic() < end:
        time.sleep(0.05)


def work(ports, task, folder, kind):
    """One worker of a cluster: prints what it has found, for `ast.literal_eval`."""
    os.environ["TF_CONFIG"] = distributed.cluster(ports, task)
    if kind == "float":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        found = train_float(strategy)
        found["shards"] = masks_from_shards(strategy, task)
        found["gradients"] = quantized_gradients(strategy)
        found["overflow"] = overflow_on_one(strategy)
        found["refused"] = other_weights_are_refused(strategy, task)
        wait_for_the_other(pathlib.Path(folder), int(task))
        print(found)
    else:
        print(train_recipe(folder, 13 if (kind, task) == ("killed", 1) else None))
