import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.export.bundle.files import check_golden, read_bundle
from tfcompress.export.flatbuffer.uint8_codes import with_uint8_inputs, with_uint8_outputs
from tfcompress.export.options import FileOptions
from tfcompress.export.runtime.runner import Runner


def test_codes_are_128_more(int8_file):
    before, after = Runner(int8_file), Runner(with_uint8_inputs(int8_file))
    (name,) = before.inputs
    old, new = before.inputs[name], after.inputs[name]
    assert new.dtype == np.uint8
    assert (new.shape, new.scale, new.zero_point) == (old.shape, old.scale, old.zero_point + 128)
    codes = np.arange(-128, 128).repeat(np.prod(old.shape) // 4)
    codes = np.resize(codes, (8, *old.shape[1:])).astype(np.int8)
    expected = before.run_codes({name: codes})
    found = after.run_codes({name: (codes.astype(int) + 128).astype(np.uint8)})
    for output, values in expected.items():
        np.testing.assert_array_equal(found[output], values)


def test_outputs_are_128_more(int8_file):
    before, after = Runner(int8_file), Runner(with_uint8_outputs(int8_file))
    codes = {n: np.zeros((2, *i.shape[1:]), np.int8) for n, i in before.inputs.items()}
    expected, found = before.run_codes(codes), after.run_codes(codes)
    for name, old in before.outputs.items():
        new = after.outputs[name]
        assert new.dtype == np.uint8
        assert (new.scale, new.zero_point) == (old.scale, old.zero_point + 128)
        np.testing.assert_array_equal(found[name], expected[name].astype(int) + 128)
    with pytest.raises(ValueError, match="int8 outputs"):
        with_uint8_outputs(with_uint8_outputs(int8_file))


def test_an_app_feeds_pixels_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype("float32")
    pixels[0, 0, 0, :2] = 0, 255
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 127.5, -1)(image))
    model = tfc.quantize(keras.Model(image, x), calibration_data=pixels)
    path = tmp_path / "m.tflite"
    report = tfc.export_tflite(model, path, verify_data=pixels, input_type="uint8")
    assert report.agreement == 1
    info = Runner(path).inputs["image"]
    assert (info.dtype, info.scale, info.zero_point) == (np.uint8, 1, 0)
    assert read_bundle(path).metadata["signatures"][0]["inputs"][0]["dtype"] == "uint8"
    assert check_golden(path) == 0


def test_what_is_refused(int8_file):
    with pytest.raises(ValueError, match="int8 inputs"):
        with_uint8_inputs(with_uint8_inputs(int8_file))
    for options in ({"input_type": "int4"}, {"input_type": "uint8", "float_io": True}):
        with pytest.raises(ValueError, match="input_type"):
            FileOptions(**options)
