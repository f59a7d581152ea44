import json

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.analysis.comparison.layer_errors import quantizers_of


@pytest.fixture(scope="module")
def damaged():
    """A quantized model, one range of which is far too narrow, and data."""
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="first")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization()(x))
    x = layers.Conv2D(4, 3, activation="relu", name="second")(x)
    outputs = layers.Dense(3, name="logits")(layers.Flatten()(x))
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 2)).astype(np.float32)
    model = tfc.quantize(keras.Model(inputs, outputs), calibration_data=data)
    quantizer = next(q for q in quantizers_of(model) if q.source == "second")
    low, high = quantizer.range
    quantizer.set_range(low, high / 8)
    return model, data


def test_the_damaged_layer_comes_first_with_what_helps(damaged):
    model, data = damaged
    before = model.predict(data, verbose=0)
    found = tfc.debug_quantization(model, (data, np.zeros(32)), verbose=0)
    worst = found.layers[0]
    assert (worst.name, worst.kernel) == ("second", "second")
    assert worst.saturated > 0.1
    assert worst.own_snr_db < 15 < min(e.own_snr_db for e in found.layers[1:])
    remedy = found.remedies[0]
    assert remedy.layer == "second"
    assert "tfc.MinMax()" in remedy.what
    assert remedy.gain_db > 10
    # The model is as it was.
    np.testing.assert_array_equal(model.predict(data, verbose=0), before)
    # And the remedy does what it says.
    quantizer = next(q for q in quantizers_of(model) if q.source == "second")
    old = quantizer.range
    quantizer.set_range(worst.smallest, worst.largest)
    assert tfc.debug_quantization(model, data, verbose=0).output_snr_db == pytest.approx(
        remedy.snr_db, abs=0.5
    )
    quantizer.set_range(*old)


def test_figures_against_numpy(damaged):
    model, data = damaged
    found = {e.name: e for e in tfc.debug_quantization(model, data, most_layers=0, verbose=0)}
    image = found["image"]
    low, high = image.low, image.high
    scale = (high - low) / 255
    codes = np.clip(np.rint((data - low) / scale), 0, 255)
    noise = np.sum((data - (codes * scale + low)) ** 2)
    assert image.own_snr_db == pytest.approx(10 * np.log10(np.sum(data**2) / noise), abs=0.05)
    assert image.codes == len(np.unique(codes))
    assert (image.smallest, image.largest) == pytest.approx((data.min(), data.max()))
    assert found["relu"].kernel == "first"
    assert 35 < found["relu"].weight_snr_db < 60
    assert image.weight_snr_db is None


def test_text_json_and_page(damaged, tmp_path):
    model, data = damaged
    found = tfc.debug_quantization(model, data[:8], verbose=0)
    assert "worst first" in str(found)
    assert "What helps" in str(found)
    json.dumps(found.to_dict())
    page = found.save_html(tmp_path / "debug.html").read_text("utf-8")
    assert page.count("<svg") == 4
    with pytest.raises(ValueError, match="Expected a quantized model"):
        tfc.debug_quantization(keras.Sequential([keras.Input((2,)), layers.Dense(2)]), data)


def test_an_input_of_pixels_that_are_rescaled():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 3, name="conv")(x))
    data = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype(np.float32)
    found = tfc.debug_quantization(tfc.quantize(model, calibration_data=data), data, verbose=0)
    (image,) = (e for e in found if e.name == "image")
    # Bytes are their own codes, and the shift by half a step is all that is lost.
    assert (image.saturated, image.codes) == (0.0, 256)
    assert image.own_snr_db > 40
    assert (image.low, image.high) == pytest.approx((-128 / 127.5, 127 / 127.5))
    assert (image.smallest, image.largest) == pytest.approx((-1, 1), abs=1e-5)


_TRAINED = tfc.Scheme(
    tfc.WeightScheme(2, narrow_range=False, quantizer=tfc.LSQ()),
    tfc.ActivationScheme(4, quantizer=tfc.LSQPlus()),
)


@pytest.mark.parametrize(
    ("few", "layer"),
    # Few bits in a kernel; in a tensor, whose range is trained; in both.
    [
        ({"second": "w4a8"}, "second"),
        ({"relu": _TRAINED}, "relu"),
        ({"second": _TRAINED}, "second"),
    ],
    ids=["kernel", "tensor", "both"],
)
def test_eight_bits_where_there_are_fewer(few, layer):
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="first")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, activation="relu", name="second")(x)
    outputs = layers.Dense(3, name="logits")(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 2)).astype(np.float32)
    config = tfc.QuantizationConfig(by_name=few)
    # Biases that are corrected for few bits are not those of 8; and calibration of what comes later
    # sees the error.
    quantized = tfc.quantize(model, config, calibration_data=data, bias_correction=False)
    for quantizer in quantizers_of(quantized):
        quantizer.frozen.assign(1.0)
    before = quantized.predict(data, verbose=0)
    found = tfc.debug_quantization(quantized, data, verbose=0)
    np.testing.assert_array_equal(quantized.predict(data, verbose=0), before)
    text = f"{dict.fromkeys(few, 'int8')} in the configuration"
    (remedy,) = (r for r in found.remedies if r.what.startswith(text))
    assert remedy.layer == layer
    assert remedy.gain_db > 3
    # A model of that configuration, here of the default, has what is promised.
    better = tfc.quantize(model, calibration_data=data, bias_correction=False)
    measured = tfc.debug_quantization(better, data, most_layers=0, verbose=0)
    assert measured.output_snr_db == pytest.approx(remedy.snr_db, abs=1.5)
