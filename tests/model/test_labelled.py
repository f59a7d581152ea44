import numpy as np
import pytest
import tensorflow as tf

from tfcompress.model.labelled import split_labels

X, Y = np.arange(12.0).reshape(6, 2), np.arange(6)


def test_arrays():
    x, y = split_labels((X, Y), 1)
    assert x is X
    np.testing.assert_array_equal(y, Y)
    assert split_labels(X, 1) == (X, None) or split_labels(X, 1)[1] is None
    # Two arrays are the inputs of a model with two.
    assert split_labels((X, X), 2)[1] is None
    assert split_labels(([X, X], Y), 2)[1].tolist() == Y.tolist()
    assert split_labels(({"a": X, "b": X}, Y), 2)[1] is not None
    with pytest.raises(ValueError, match="each of the 6 samples"):
        split_labels((X, Y[:2]), 1)


def test_batches():
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    x, y = split_labels(dataset, 1)
    assert y.tolist() == Y.tolist()
    np.testing.assert_array_equal(np.concatenate(x), X)
    x, y = split_labels(tf.data.Dataset.from_tensor_slices(X).batch(4), 1)
    assert (len(x), y) == (2, None)
    with pytest.raises(ValueError, match="every batch, or in none"):
        split_labels([(X, Y), X], 1)
