"""Fits one distiller on one and on two replicas and compares them; run by test_distiller.py.

A process of its own, since logical devices must be made before TensorFlow starts.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.distillation import Distiller, FeatureDistillation, LogitsDistillation


def net(width):
    inputs = keras.Input((8,))
    hidden = layers.Dense(width, activation="relu", name="hidden", kernel_regularizer="l2")(inputs)
    return keras.Model(inputs, layers.Dense(4)(hidden))


def fit(strategy):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8)).astype("float32"), rng.integers(0, 4, 32)
    with strategy.scope():
        losses = [
            LogitsDistillation(2.0),
            FeatureDistillation("hidden", "hidden"),
            keras.distillation.LogitsDistillation(2.0),
            keras.distillation.LogitsDistillation(2.0, loss=keras.losses.KLDivergence()),
        ]
        distiller = Distiller(net(16), net(4), losses, student_loss_weight=0.5)
        distiller.compile(
            keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
    logs = distiller.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    return logs, distiller.student.get_weights()


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    one = fit(tf.distribute.get_strategy())
    two = fit(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    for a, b in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for name in one[0]:
        np.testing.assert_allclose(one[0][name], two[0][name], rtol=1e-3, err_msg=name)


if __name__ == "__main__":
    main()
