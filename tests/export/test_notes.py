"""What the report and the card of a file say beside its figures: traps of ranges and platforms."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.runtime.delegation import delegation
from tfcompress.export.steps import verify


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


def net():
    """A product, an uneven concatenation, and a softmax at the end."""
    x = keras.Input((4,), name="x")
    small = layers.Dense(4, kernel_initializer=keras.initializers.Constant(1e-3))(x)
    joined = layers.Concatenate(name="join")([small, layers.Dense(4, name="large")(x)])
    gate = layers.Dense(8, name="gate")(x)
    product = layers.Multiply(name="product")([joined, gate])
    return keras.Model(x, layers.Softmax(name="soft")(layers.Dense(5, name="head")(product)))


@pytest.fixture(scope="module")
def exported(data, tmp_path_factory):
    """`(plan, report, card)` with power-of-two scales, on samples that the ranges do not fit."""
    scheme = tfc.Scheme(activations=tfc.ActivationScheme(power_of_two=True))
    path = tmp_path_factory.mktemp("notes") / "model.tflite"
    with pytest.warns(UserWarning, match="'join' joins"):
        quantized = tfc.quantize(net(), scheme, calibration_data=data)
    with pytest.warns(UserWarning, match="lie outside the range"):
        report = tfc.export_tflite(quantized, path, verify_data=8 * data)
    return quantized.plan, report, json.loads(path.with_suffix(".json").read_text())


def test_traps_are_lines_of_the_report_and_of_the_card(exported):
    _, report, card = exported
    for line in (
        "samples of the input 'x' lie outside the range",
        "'join' joins tensors whose ranges differ by a factor of",
        "codes of SOFTMAX may be a step off on ARM",
        "product: products that lie exactly between two codes",
    ):
        assert line in str(report)
        notes = card["report"]["range_notes"] + card["report"]["platform_notes"]
        assert any(line in note for note in notes), line


def test_the_plan_says_where_platforms_round_products_differently(exported):
    plan, _, _ = exported
    assert "product: products that lie exactly between two codes" in str(plan)
    assert [entry.name for entry in plan if entry.notes] == ["product"]
    assert not [entry for entry in tfc.plan(net()) if entry.notes]


def test_kernels_that_a_converter_would_not_find_again_are_named(data, tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(3, name="head")(layers.Dense(8, name="first")(x)))
    config = tfc.QuantizationConfig(by_name={"head": "w4a8"})
    quantized = tfc.quantize(model, config, calibration_data=data)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite")
    assert report.patched == ("head",)
    assert report.unverified == ()
    assert report.platform_notes == ()


def test_kernels_outside_xnnpack_are_named(data, tmp_path, monkeypatch):
    def outside(file):
        return dataclasses.replace(delegation(file), ops_outside=("FULLY_CONNECTED",))

    monkeypatch.setattr(verify, "delegation", outside)
    x = keras.Input((4,), name="x")
    quantized = tfc.quantize(keras.Model(x, layers.Dense(3)(x)), calibration_data=data)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_samples=16)
    assert report.ops_outside == ("FULLY_CONNECTED",)
    assert "FULLY_CONNECTED runs outside XNNPACK" in str(report)


def test_layers_in_float_before_layers_in_int8_are_a_note(data, tmp_path, converter):
    x = keras.Input((4,), name="x")
    middle = layers.Dense(6, name="middle")(layers.Dense(6, name="first")(x))
    model = keras.Model(x, layers.Dense(3, name="last")(middle))
    for name, is_noted in (("middle", True), ("last", False)):
        config = tfc.QuantizationConfig(by_name={name: None})
        quantized = tfc.quantize(model, config, calibration_data=data)
        report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=data)
        found = [note for note in report.platform_notes if "computes in float" in note]
        assert bool(found) == is_noted
        assert all(note.startswith(f"What {name} computes") for note in found)
