"""Agreement with the float model: what is stored, what is compared, what is said."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.runtime.float_agreement import FloatReference, compare_with_float


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(0, 1, (40, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(inputs))
    return keras.Model(
        inputs, [layers.Dense(10, name="logits")(x), layers.Dense(1, name="size")(x)]
    )


def test_top1_and_signal_to_noise_against_numpy():
    expected = np.float32([[3, 4], [1, -2], [0, 5]])
    found = np.float32([[3, 4.5], [1, 2], [0, 5]])
    (result,) = compare_with_float(FloatReference([], [expected]), {"y": found}, ["y"])
    assert result.top1 == pytest.approx(2 / 3)
    assert result.snr_db == pytest.approx(10 * np.log10(55 / 16.25))
    assert result.samples == 3
    assert result.is_low
    (same,) = compare_with_float(FloatReference([], [expected]), {"y": expected}, ["y"])
    assert same.snr_db == np.inf
    assert not same.is_low


def test_the_file_is_compared_with_the_model_that_was_quantized(model, images, tmp_path):
    """After training too, and after the float model has changed."""
    expected = model.predict(images, verbose=0)
    quantized = tfc.quantize(model, calibration_data=images)
    path = tmp_path / "model.tflite"
    report = tfc.export_tflite(quantized, path)
    logits, size = report.float_agreement["serving_default"]
    found = tfc.Runner(path).predict(images)
    noise = np.sum((expected[0] - found["logits"]) ** 2)
    assert logits.snr_db == pytest.approx(10 * np.log10(np.sum(expected[0] ** 2) / noise), abs=1e-3)
    assert logits.top1 == np.mean(expected[0].argmax(-1) == found["logits"].argmax(-1)) > 0.9
    assert (size.output, size.top1, size.samples) == ("size", None, 40)
    assert "Agreement with the float model" in str(report)
    assert "far from" not in str(report)

    # A quantized model that is loaded does not know its float model; it can be told.
    quantized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    report = tfc.export_tflite(loaded, path)
    assert report.float_agreement == {"serving_default": None}
    assert "with the float model is not known" in str(report)
    report = tfc.export_tflite(loaded, path, verify_data=images, float_model=model)
    assert report.float_agreement["serving_default"][0].top1 == logits.top1
    with pytest.raises(ValueError, match="float_model with outputs of the shapes"):
        tfc.export_tflite(loaded, path, verify_data=images, float_model=part(model))

    kernel = model.get_layer("logits").kernel
    quantized.get_layer("logits").kernel.assign(-kernel.numpy())
    kernel.assign(-kernel.numpy())
    try:
        report = tfc.export_tflite(quantized, path, verify_samples=16)
    finally:
        kernel.assign(-kernel.numpy())
    logits, _ = report.float_agreement["serving_default"]
    assert logits.top1 < 0.5
    assert logits.samples == 16
    assert "'logits' are far from those of the float model" in str(report)


def part(model):
    return keras.Model(model.inputs, model.outputs[0])


def test_nothing_is_compared_where_nothing_is_to_be(model, images, tmp_path):
    path = tmp_path / "model.tflite"
    report = tfc.export_tflite(model, path, allow_float=True)
    assert report.float_agreement == {}
    quantized = tfc.quantize(model, calibration_data=images)
    assert tfc.export_tflite(quantized, path, verify_samples=0).float_agreement == {}
