"""The chain between a latent variable and the layer that reads it."""

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
    WeightTransform,
)


@keras.saving.register_keras_serializable(package="chain")
class Note(WeightTransform):
    """Writes down in which order it ran."""

    def __init__(self, label, order, **kwargs):
        super().__init__(**kwargs)
        self.label, self.order = label, order

    def apply(self, value, notes):
        notes.setdefault("seen", []).append(self.label)
        return value

    def get_config(self):
        return {**super().get_config(), "label": self.label, "order": self.order}


def test_places_in_the_chain():
    assert KEEP_MASK < CLUSTER < FAKE_QUANT
    assert KeepMask.order == KEEP_MASK


def test_kernels_run_before_the_bias_and_each_chain_in_its_order():
    chains = {
        "bias": [Note("bias", 0)],
        "kernel": [Note("c", 20), Note("a", 0), Note("b", 10)],
    }
    layer = compress(layers.Dense(2), chains)
    layer.build((None, 3))
    _, notes = layer.transformed(call_index=3, training=True)
    assert notes["seen"] == ["a", "b", "c", "bias"]
    assert (notes["call_index"], notes["training"]) == (3, True)
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
        WeightTransform().apply(tf.zeros(1), {})
