"""Near-duplicate channels become one."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.pruning.structure.oracle import outputs, plain, randomize, relative_error, sample
from tfcompress.pruning.structure import shrink


def test_merging_of_duplicates_changes_nothing():
    model = plain()
    first, norm = model.get_layer("first"), model.get_layer("norm")
    for variable in (*first.variables, *norm.variables):
        value = np.array(variable)
        value[..., 5], value[..., 6] = value[..., 2], value[..., 2]
        variable.assign(value)
    smaller = shrink(model, merge=1e-6)
    assert smaller.get_layer("first").filters == 6
    assert relative_error(outputs(model, sample(model)), outputs(smaller, sample(model))) < 1e-5
    # Without the rows of what went, it would not be the same.
    assert not np.allclose(
        smaller.get_layer("second").kernel,
        np.array(model.get_layer("second").kernel)[:, :, [0, 1, 2, 3, 4, 7]],
    )


def test_channels_on_different_ways_are_not_merged():
    inputs = keras.Input((8,))
    rectified, plain_half = ops.split(layers.Dense(8, name="both")(inputs), 2, axis=-1)
    x = ops.concatenate([ops.relu(rectified), plain_half], axis=-1)
    model = keras.Model(inputs, layers.Dense(3)(x))
    randomize(model)
    both = model.get_layer("both")
    kernel, bias = np.array(both.kernel), np.array(both.bias)
    kernel[:, 5], bias[5] = kernel[:, 1], bias[1]
    both.kernel.assign(kernel)
    both.bias.assign(bias)
    with pytest.raises(ValueError, match="Nothing to remove"):
        shrink(model, merge=1e-6)
