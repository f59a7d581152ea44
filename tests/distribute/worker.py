"""What the workers of test_distribute.py run, each in a process of its own, and one alone."""

import hashlib
import os
import pathlib
import signal

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from recipes import distributed

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = (X @ np.random.default_rng(1).normal(size=(6, 2))).astype("float32")


def batches():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.with_options(options)


def train_float():
    """A float model, pruned, with `evaluate`."""
    is_alone = "TF_CONFIG" not in os.environ
    strategy = tf.distribute.get_strategy()
    if not is_alone:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((6,)), layers.Dense(16, "relu", name="a"), layers.Dense(2, name="b")]
        )
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=["mae"])
    if not is_alone:
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


class Kill(keras.callbacks.Callback):
    """Ends the process at a step without a chance to tidy up."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_recipe(folder, killed_at=None):
    """The recipe on a part of its data: two epochs of eight steps; a backup at every tenth."""
    callbacks = [] if killed_at is None else [Kill(killed_at)]
    folder = pathlib.Path(folder)
    return distributed.train(folder, 2, sparsity=0.5, samples=512, callbacks=callbacks)


def work(ports, task, folder, kind):
    """One worker of a cluster: prints what it has found, for `ast.literal_eval`."""
    os.environ["TF_CONFIG"] = distributed.cluster(ports, task)
    if kind == "float":
        print(train_float())
    else:
        print(train_recipe(folder, 13 if (kind, task) == ("killed", 1) else None))
