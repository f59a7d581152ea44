"""Data of every form that `fit` takes, cut into batches in the structure of a model's inputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import tree

from tfcompress.model.batches import input_batches, line_up

X = np.arange(40 * 3, dtype=np.float32).reshape(40, 3)
Y = np.arange(40)
ONE = keras.KerasTensor((None, 3), name="image")
TWO = [ONE, keras.KerasTensor((None,), name="row")]


class Rows(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[10 * index : 10 * index + 10], Y[10 * index : 10 * index + 10]


def joined(batches) -> list[np.ndarray]:
    flat = [tree.flatten(batch) for batch in batches]
    return [np.concatenate(arrays) for arrays in zip(*flat, strict=True)]


def in_tens(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(10)


@pytest.mark.parametrize(
    "data",
    [
        X,
        tf.constant(X),
        [X],
        [X[:10], X[10:]],
        {"image": X, "unused": Y},
        in_tens(X),
        in_tens(X, Y),
        in_tens({"image": X}),
        ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)),
        Rows(),
    ],
)
def test_one_input(data):
    batches = list(input_batches(data, ONE))
    assert all(not isinstance(batch, (list, tuple, dict)) for batch in batches)
    np.testing.assert_array_equal(joined(batches)[0], X)


@pytest.mark.parametrize(
    "data",
    [
        [X, Y],
        (X, Y),
        {"row": Y, "image": X},
        in_tens({"row": Y, "image": X}),
        [[X, Y]],
        [([X, Y], 0)],
        [(X, Y)],
    ],
)
def test_two_inputs(data):
    batches = list(input_batches(data, TWO))
    assert all(isinstance(batch, list) for batch in batches)
    for found, expected in zip(joined(batches), (X, Y), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_dict_of_inputs_is_read_by_its_keys():
    inputs = {"b": ONE, "a": keras.KerasTensor((None,), name="image")}
    (batch,) = input_batches([{"a": Y, "b": X}], inputs)
    np.testing.assert_array_equal(batch["a"], Y)
    np.testing.assert_array_equal(batch["b"], X)


def test_arrays_are_cut_into_batches_of_32():
    assert [len(batch) for batch in input_batches(X, ONE)] == [32, 8]
    assert [len(batch) for batch in input_batches([X], ONE)] == [32, 8]


def test_without_a_graph_batches_come_as_they_are():
    assert [type(batch) for batch in input_batches([{"any": X}, {"any": X}], None)] == [dict, dict]


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (3, TypeError, "arrays, a tf.data.Dataset or an iterable of batches. Received: int"),
        ({"image": X, "row": Y[:3]}, ValueError, r"one length as data. Received: lengths \[3, 40"),
        (X[0], ValueError, r"shape \(None, 3\) for the input 'image'. Received: \(3,\).*np.stack"),
        (list(X), ValueError, r"Received: \(3,\).*np.stack"),
        (X[:, :2], ValueError, r"Received: \(32, 2\)"),
        ({"picture": X}, ValueError, r"Received: \['picture'\], without \['image'\]"),
        ([[X, Y]], ValueError, "data for 1 inputs. Received: 2 arrays"),
    ],
)
def test_data_that_do_not_fit(data, kind, message):
    with pytest.raises(kind, match=message):
        list(input_batches(data, ONE))


def test_line_up_reads_names_in_the_order_of_the_inputs():
    image, row = line_up({"row": Y, "other": X, "image": X}, TWO)
    assert image is X
    assert row is Y
