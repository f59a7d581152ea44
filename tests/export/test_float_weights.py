"""Float files with float16 weights, and with int8 weights and float activations."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

IMAGES = np.random.default_rng(0).normal(0, 1, (16, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 8), name="image"),
            layers.Conv2D(32, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ]
    )
    model.get_layer("bn").gamma.assign(np.linspace(-1, 2, 32))
    return model


@pytest.mark.parametrize(("weights", "stored"), [("float16", "float16"), ("dynamic", "int8")])
def test_the_file_holds_smaller_weights(model, weights, stored, tmp_path, converter):
    path = tmp_path / "m.tflite"
    report = tfc.export_tflite(model, path, calibration_data=IMAGES, weights=weights)
    kernels = {row.name: row.stored for row in report.layers}
    # The converter leaves kernels below 1024 weights in float32, in "dynamic".
    assert kernels["conv"] == kernels["logits"] == stored
    assert kernels["depthwise"] == ("float16" if weights == "float16" else "float32")
    assert {row.name: row.num_bits for row in report.layers}["conv"] == np.dtype(
        stored
    ).itemsize * 8
    assert report.num_bytes < report.float_num_bytes * (0.65 if weights == "float16" else 0.5)
    assert report.verified_on == {"serving_default": "calibration data"}
    found = next(iter(tfc.Runner(path).predict(IMAGES).values()))
    wanted = model.predict(IMAGES, verbose=0)
    limit = 1e-3 if weights == "float16" else 3e-2
    assert 0 < np.abs(found - wanted).max() < limit * np.abs(wanted).max()


def test_what_it_is_not_for_is_refused(model, tmp_path):
    quantized = tfc.quantize(model, calibration_data=IMAGES)
    with pytest.raises(ValueError, match=r"quantized.*strip"):
        tfc.export_tflite(quantized, tmp_path / "m.tflite", weights="float16")
    with pytest.raises(ValueError, match=r"'float16', 'dynamic'.*weights='int4'"):
        tfc.export_tflite(model, tmp_path / "m.tflite", weights="int4")
    with pytest.raises(ValueError, match="sparse_encoding"):
        tfc.export_tflite(model, tmp_path / "m.tflite", weights="dynamic", sparse_encoding=True)
    assert not list(tmp_path.iterdir())
