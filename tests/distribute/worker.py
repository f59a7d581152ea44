"""One of two workers on this machine: trains, prunes and quantizes; run by test_distribute.py.

python worker.py TASK PORT PORT FOLDER        # TASK is 0, 1, or "alone"
"""

import hashlib
import json
import os
import sys

TASK, PORTS, FOLDER = sys.argv[1], sys.argv[2:4], sys.argv[4]
if TASK != "alone":
    os.environ["TF_CONFIG"] = json.dumps(
        {
            "cluster": {"worker": [f"127.0.0.1:{port}" for port in PORTS]},
            "task": {"type": "worker", "index": int(TASK)},
        }
    )
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
else:
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402

import tfcompress as tfc  # noqa: E402

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = (X @ np.random.default_rng(1).normal(size=(6, 2))).astype("float32")


def batches():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.with_options(options)


def train(is_quantized):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((6,)), layers.Dense(16, "relu", name="a"), layers.Dense(2, name="b")]
        )
        if is_quantized:
            model = tfc.quantize(model, calibration_data=X)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=["mae"])
    if TASK != "alone":
        # Twice is as good as once.
        tfc.distribute.across_workers(tfc.distribute.across_workers(model))
    pruning = tfc.callbacks.Pruning(tfc.ConstantSparsity(0.5, begin_step=2), layers="a", verbose=0)
    data = batches()
    history = model.fit(data, epochs=3, callbacks=[pruning], shuffle=False, verbose=0).history
    state = [np.asarray(v) for v in (*model.weights, *model.optimizer.variables)]
    name = "quantized" if is_quantized else "float"
    if tfc.distribute.is_chief():
        model.save(os.path.join(FOLDER, f"{TASK}_{name}.keras"))
    return {
        "losses": history["loss"],
        "evaluated": model.evaluate(data, verbose=0),
        "digest": hashlib.sha256(b"".join(value.tobytes() for value in state)).hexdigest(),
        "zeros": (np.asarray(model.get_layer("a").kernel) == 0).tolist(),
    }


def main():
    found = {
        "chief": tfc.distribute.is_chief(),
        "float": train(is_quantized=False),
        "quantized": train(is_quantized=True),
    }
    with open(os.path.join(FOLDER, f"{TASK}.json"), "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
