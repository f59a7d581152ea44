"""Joins of a fixed range with another one: QUANTIZE to the scale of the join is as exact as all."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tests.one_op import one_op, run
from tfcompress.quantization.fake_quant.requantize import requantized_steps


def test_codes_of_the_file_are_the_outputs_of_the_model(tmp_path):
    inputs = keras.Input((12,), name="x")
    a, b = layers.Dense(16, name="a")(inputs), layers.Dense(16, name="b")(inputs)
    fixed = [layers.Softmax()(a), ops.sigmoid(a), ops.tanh(b)]
    outputs = {
        "with_a_softmax": layers.Concatenate()([3.0 * a, fixed[0]]),
        "of_all": layers.Concatenate()([b, *fixed]),
        "larger": layers.Maximum()([a, fixed[1], fixed[2]]),
        "of_fixed_ranges": layers.Concatenate()(fixed),
    }
    samples = np.random.default_rng(0).normal(size=(128, 12)).astype(np.float32)
    quantized = tfc.quantize(keras.Model(inputs, outputs), calibration_data=samples)
    quantized.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    tfc.export_tflite(loaded, tmp_path / "m.tflite", verify_samples=0)
    runner = tfc.Runner((tmp_path / "m.tflite").read_bytes())
    found, expected = runner.predict(samples), loaded.predict(samples, verbose=0)
    for name in outputs:
        assert np.mean(np.isclose(found[name], expected[name], atol=1e-5)) >= 0.99, name


@pytest.mark.parametrize("ratio", [1 / 200, 0.0301, 0.1176, 0.5, 0.9, 1.0, 1.7, 3.3, 30.0])
def test_requantized_steps_are_those_of_the_runtime(ratio):
    scale = np.float32(0.0371)
    given = np.float32(scale * np.float32(ratio))
    codes = np.arange(-128, 128, dtype=np.int8)[None]
    file = one_op("QUANTIZE", [codes], (codes.shape, np.int8), version=2, scales=[given, scale])
    expected, is_delegated = run(file, [codes])
    assert is_delegated
    found = requantized_steps(codes.astype(np.float32) * given, given, scale)
    np.testing.assert_array_equal(np.clip(found, -128, 127), expected)
