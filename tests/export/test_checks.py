"""What an export refuses, and which float layers it takes for asked."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.checks import check_limits, missing_ranges


def model():
    inputs = keras.Input((4,), name="x")
    y = layers.Dense(3, name="first")(inputs)
    return keras.Model(inputs, layers.Softmax(name="soft")(layers.Dense(2, name="second")(y)))


@pytest.mark.filterwarnings("ignore:No .tflite file can hold")
@pytest.mark.parametrize(
    ("weights", "activations", "words"),
    [
        ({"symmetric": False}, {}, ["first: affine weights", "second: affine weights"]),
        ({"narrow_range": False}, {}, ["first: weights with code −128"]),
        ({}, {"num_bits": 4, "symmetric": True}, ["x: symmetric activations of 4 bits"]),
        ({}, {"rounding": "truncate"}, ["first: truncated activations"]),
        ({}, {"narrow_range": True}, ["first: narrow-range activations"]),
    ],
)
def test_limits_name_every_layer_and_the_reason(weights, activations, words):
    scheme = tfc.Scheme(tfc.WeightScheme(**weights), tfc.ActivationScheme(**activations))
    with pytest.raises(ValueError, match="schemes that LiteRT can hold") as error:
        check_limits(tfc.quantize(model(), scheme))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("scheme", ["int8", "w4a8", "w4a4"])
def test_what_a_file_can_hold_passes(scheme):
    check_limits(tfc.quantize(model(), scheme))


def test_missing_ranges_are_those_that_no_data_has_given():
    quantized = tfc.quantize(model())
    assert [q.name for q in missing_ranges(quantized)] == [
        "x_quantizer",
        "first_quantizer",
        "second_quantizer",
    ]
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    assert missing_ranges(tfc.quantize(model(), calibration_data=x)) == []
