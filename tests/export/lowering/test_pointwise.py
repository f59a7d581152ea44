"""Pointwise convolutions as dense layers: packed in the file, with the codes that were trained."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

IMAGES = np.random.default_rng(0).normal(0, 1, (32, 6, 6, 8)).astype(np.float32)
PACKED = ("normed", "relu", "separable", "sequence")
KEPT = ("strided", "wide", "odd")


def float_model():
    """Pointwise convolutions with a batch norm, a fused ReLU, in a sequence, and others."""
    random = np.random.default_rng(1)
    image = keras.Input((6, 6, 8), name="image")
    x = layers.Conv2D(12, 1, use_bias=False, name="normed")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(16, 1, activation="relu", name="relu")(x)
    strided = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 1, strides=2, name="strided")(x))
    x = layers.SeparableConv2D(7, 3, name="separable")(x)
    x = layers.Conv2D(8, 1, name="odd")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="wide")(x))
    steps = layers.Conv1D(8, 1, name="sequence")(layers.Reshape((12, 24))(image))
    steps = layers.GlobalAveragePooling1D()(steps)
    model = keras.Model(image, [layers.Concatenate()([x, strided]), steps])
    norm = model.get_layer("bn")
    # Some of its factors are negative, which turns the signs of codes.
    norm.gamma.assign(random.uniform(-1, 2, 12))
    norm.beta.assign(random.normal(size=12))
    norm.moving_mean.assign(random.normal(size=12))
    return model


@pytest.mark.parametrize(("preset", "stored"), [("int4", "int4"), ("w2a8", "int2")])
def test_the_codes_are_those_of_the_convolutions(preset, stored, tmp_path, converter):
    quantized = tfc.quantize(float_model(), preset, calibration_data=IMAGES)
    said = {entry.name: entry.stored for entry in quantized.plan if entry.stored}
    by_choice = f"int8; {stored} with pointwise_as_dense"
    assert said == {
        **dict.fromkeys(("normed", "relu", "sequence"), (by_choice,)),
        "separable": ("int8", by_choice),
        **dict.fromkeys(KEPT, ("int8",)),
    }
    assert "in the file" in str(quantized.plan)
    found, reports = {}, {}
    for as_dense in (False, True):
        path = tmp_path / f"{as_dense}.tflite"
        reports[as_dense] = tfc.export_tflite(
            quantized, path, verify_data=IMAGES, pointwise_as_dense=as_dense
        )
        found[as_dense] = tfc.Runner(path).run_codes(IMAGES)
    for name, codes in found[False].items():
        assert len(np.unique(codes)) > 50
        np.testing.assert_array_equal(found[True][name], codes)
    report = reports[True]
    assert report.agreement == 1.0
    assert not report.unverified
    assert report.fully_delegated
    types = {row.name: row.stored for row in report.layers}
    assert {types[name] for name in KEPT} == {"int8"}
    # Rows of whole bytes: two bits take multiples of four inputs.
    assert {name: types[name] for name in PACKED} == dict.fromkeys(PACKED, stored)
    assert {row.stored for row in reports[False].layers} == {"int8"}
    weights = sum(r.num_weights for r in report.layers if r.name in PACKED)
    bits = {"int4": 4, "int2": 2}[stored]
    saved = reports[False].constant_num_bytes - report.constant_num_bytes
    # Reshapes have small constants of their own.
    assert abs(saved - weights * (8 - bits) / 8) < 200
