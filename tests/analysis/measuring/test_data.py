"""Data that cannot be read to its end, or not twice, or sample by sample: refused at once."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc

X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
Y = np.arange(40) % 3


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def endless():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).repeat()


def unbatched():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def iterator():
    return iter([(X, Y)])


class WithoutLength(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return X[:8], Y[:8]


READERS = {
    "search, train": lambda model, data: tfc.search(
        model, data, (X, Y), max_drop=0.1, epochs=1, verbose=0
    ),
    "search, validation": lambda model, data: tfc.search(
        model, (X, Y), data, max_drop=0.1, epochs=1, verbose=0
    ),
    "control, validation": lambda model, data: tfc.accuracy_control(
        model, data, calibration_data=X, verbose=0
    ),
    "control, calibration": lambda model, data: tfc.accuracy_control(
        model, (X, Y), calibration_data=data, verbose=0
    ),
    "recipe": lambda model, data: tfc.Recipe([{"train": {}}]).run(model, data, verbose=0),
    "quantize": lambda model, data: tfc.quantize(model, calibration_data=data),
}
ONCE = ("search, validation", "control, validation", "quantize")


@pytest.mark.parametrize("reader", READERS)
def test_data_without_an_end(model, reader):
    for data in (endless(), WithoutLength()):
        with pytest.raises(ValueError, match="repeats for ever"):
            READERS[reader](model, data)


@pytest.mark.parametrize("reader", READERS)
def test_single_samples(model, reader):
    with pytest.raises(ValueError, match=r"dataset\.batch\(32\)"):
        READERS[reader](model, unbatched())


@pytest.mark.parametrize("reader", [name for name in READERS if name not in ONCE])
def test_data_that_can_be_read_once(model, reader):
    with pytest.raises(ValueError, match="read more than once"):
        READERS[reader](model, iterator())
