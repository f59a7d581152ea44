"""Sums of whole numbers, rounded as the runtime rounds them, whatever activation a layer has."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

RELUS = {"relu": layers.ReLU, "relu6": lambda: layers.ReLU(6.0)}


@pytest.mark.parametrize("activation", RELUS)
def test_an_activation_inside_a_layer_gives_the_codes_of_one_behind_it(activation):
    random = np.random.default_rng(0)
    inputs = keras.Input((64,))
    inside = keras.Model(inputs, layers.Dense(256, activation)(inputs))
    behind = keras.Model(inputs, RELUS[activation]()(layers.Dense(256)(inputs)))
    kernel = random.normal(0, 0.5, (64, 256)).astype("float32")
    bias = random.normal(0, 1, 256).astype("float32")
    # A rounding of real values falls on the other side of a half once in some 100,000.
    x = random.normal(size=(20_000, 64)).astype("float32")
    found = []
    for model in (inside, behind):
        model.layers[1].set_weights([kernel, bias])
        quantized = tfc.quantize(model, calibration_data=x[:512], bias_correction=False)
        found.append(quantized.predict(x, batch_size=5000, verbose=0))
    assert len(np.unique(found[0])) > 100
    np.testing.assert_array_equal(*found)
