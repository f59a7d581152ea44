"""PReLU before its training, whose slopes are zero."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc


@pytest.mark.parametrize("shared_axes", [None, [1, 2]])
def test_slopes_of_zero_ship(shared_axes, tmp_path, converter):
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(32, 6, 6, 3)).astype("float32")
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(8, 3), layers.PReLU(shared_axes=shared_axes)]
    )
    quantized = tfc.quantize(model, calibration_data=images)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=images)
    assert report.agreement == 1.0
    assert report.fully_delegated
    assert not report.float_tensors
