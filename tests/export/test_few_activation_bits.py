"""Activations of fewer than 8 bits: some of int8's codes in the file, and what was trained."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.fake_quant.uniform_activations import UniformActivations

IMAGES = np.random.default_rng(0).normal(0, 1, (48, 8, 8, 4)).astype(np.float32)


def float_model():
    """A sum behind a ReLU, a table, a product, prescribed ranges, averages; two outputs."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 4), name="image")
    left = layers.Conv2D(8, 3, padding="same", use_bias=False, name="left")(image)
    left = layers.BatchNormalization(name="bn")(left)
    right = layers.Conv2D(8, 1, name="right")(image)
    x = layers.ReLU(name="relu")(layers.Add()([left, right]))
    x = layers.MaxPooling2D()(layers.DepthwiseConv2D(3, activation="relu6", name="depthwise")(x))
    gate = layers.Activation("sigmoid")(layers.Conv2D(6, 2, name="gate")(x))
    x = layers.Activation("gelu", name="gelu")(layers.Conv2D(6, 2, name="conv")(x))
    x = layers.Concatenate()([layers.Multiply()([gate, x]), x])
    x = layers.GlobalAveragePooling2D()(x)
    outputs = [layers.Dense(5, name="logits")(x), layers.Dense(3, "tanh", name="angles")(x)]
    return keras.Model(image, outputs)


@pytest.mark.parametrize(("bits", "quantizer"), [(4, UniformActivations()), (3, tfc.LSQPlus())])
def test_the_file_computes_what_was_trained(bits, quantizer, tmp_path, converter):
    scheme = tfc.Scheme(tfc.WeightScheme(4), tfc.ActivationScheme(bits, quantizer=quantizer))
    model = tfc.quantize(float_model(), scheme, calibration_data=IMAGES)
    # Larger than what was calibrated: both ends of every range are reached.
    inputs = IMAGES * 2
    path = tmp_path / "m.tflite"
    report = tfc.export_tflite(model, path, verify_data=IMAGES)
    assert report.agreement == 1.0
    assert not report.float_tensors
    found = tfc.Runner(path).predict(inputs)
    for name, wanted in zip(("logits", "angles"), model(inputs), strict=True):
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)
    assert 2 < len(np.unique(found["logits"])) <= 2**bits
    codes = tfc.Runner(path).run_codes(inputs)["logits"]
    assert codes.min() >= 128 - 2**bits
    # What a ReLU gives is held in its range by the fused one, and prescribed ranges have 8 bits.
    held = (
        "image",
        "left",
        "right",
        "gate",
        "conv",
        "multiply",
        "concatenate",
        "average",
        "logits",
    )
    assert report.ops["MAXIMUM"] <= len(held)
    plan = {entry.name: entry.activations for entry in tfc.plan(float_model(), scheme)}
    assert plan["relu"].startswith(f"int{bits}")
    assert plan["angles"].startswith("int8")


def test_the_codes_of_few_bits_are_the_highest():
    quantizer = tfc.quantize(float_model(), "w4a4", calibration_data=IMAGES).get_layer(
        "relu_quantizer"
    )
    low, high = quantizer.range
    scale, zero_point = float(quantizer.scale), float(quantizer.zero_point)
    assert (low, zero_point) == (0.0, 112.0)
    assert round(high / scale) + zero_point == 127
