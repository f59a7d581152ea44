"""The chain between a latent variable and the layer that reads it."""

from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.model.compressed import compress
from tfcompress.model.transforms import (
    CLUSTER,
    FAKE_QUANT,
    KEEP_MASK,
    KeepMask,
    RoundedKernel,
    WeightCall,
    WeightTransform,
)


@keras.saving.register_keras_serializable(package="chain")
class Recorded(WeightTransform):
    """Records in which order it ran, and for which call."""

    runs: ClassVar[list] = []

    def __init__(self, label, order, **kwargs):
        super().__init__(**kwargs)
        self.label, self.order = label, order

    def apply(self, value, call):
        self.runs.append((self.label, call))
        return value

    def get_config(self):
        return {**super().get_config(), "label": self.label, "order": self.order}


def test_places_in_the_chain():
    assert KEEP_MASK < CLUSTER < FAKE_QUANT
    assert KeepMask.order == KEEP_MASK


def test_kernels_run_before_the_bias_and_each_chain_in_its_order():
    chains = {
        "bias": [Recorded("bias", 0)],
        "kernel": [Recorded("c", 20), Recorded("a", 0), Recorded("b", 10)],
    }
    layer = compress(layers.Dense(2), chains)
    layer.build((None, 3))
    Recorded.runs.clear()
    _, rounded = layer.transformed(call_index=3, training=True)
    assert rounded is None
    assert [label for label, _ in Recorded.runs] == ["a", "b", "c", "bias"]
    assert {call for _, call in Recorded.runs} == {WeightCall(3, training=True)}
    again = type(layer).from_config(layer.get_config())
    assert [t.label for t in again.transforms["kernel"]] == ["a", "b", "c"]


def test_a_mask_starts_with_ones_and_cuts_value_and_gradient():
    layer = compress(layers.Dense(2), {"kernel": [KeepMask()]})
    layer.build((None, 3))
    mask = layer.transformed.of_type(KeepMask)["kernel"].mask
    assert not mask.trainable
    np.testing.assert_array_equal(mask, np.ones((3, 2)))
    mask.assign([[1, 0], [0, 1], [1, 1]])
    with tf.GradientTape() as tape:
        values, _ = layer.transformed()
        total = tf.reduce_sum(values["kernel"])
    np.testing.assert_array_equal(values["kernel"], layer.kernel * mask)
    np.testing.assert_array_equal(tape.gradient(total, layer.kernel.value), mask)


def test_transforms_are_float32_under_any_policy():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        mask = KeepMask()
    finally:
        keras.config.set_dtype_policy("float32")
    assert mask.compute_dtype == "float32"
    assert "dtype" not in mask.get_config()


def test_the_base_class_does_nothing_by_itself():
    with pytest.raises(NotImplementedError):
        WeightTransform().apply(tf.zeros(1), WeightCall())


@keras.saving.register_keras_serializable(package="chain")
class Doubled(WeightTransform):
    """Twice the kernel, and what it tells of its codes."""

    order = FAKE_QUANT

    def apply(self, value, call):
        if call.kernel is not None:
            return value + call.kernel.scale
        one = tf.constant(1.0)
        return RoundedKernel(2.0 * value, tf.constant([3.0, 4.0]), one, one)


def test_the_bias_is_told_of_the_kernels_codes():
    layer = compress(layers.Dense(2), {"bias": [Doubled()], "kernel": [Doubled()]})
    layer.build((None, 3))
    values, rounded = layer.transformed()
    np.testing.assert_array_equal(values["kernel"], 2 * layer.kernel.numpy())
    np.testing.assert_array_equal(values["bias"], [3, 4])
    np.testing.assert_array_equal(rounded.scale, [3, 4])
