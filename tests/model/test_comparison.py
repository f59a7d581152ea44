"""Two inventories side by side."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.model.comparison import compare_models


def make(zero=False):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(20, name="wide")(inputs))
    inner = keras.Sequential([keras.Input((20,)), layers.Dense(5, name="head")], name="inner")
    model = keras.Model(inputs, inner(x))
    if zero:
        kernel = model.get_layer("wide").kernel
        kernel.assign(np.where(kernel.numpy() > 0, np.float32(0.5), np.float32(0)))
    return model


def test_every_layer_before_and_after():
    compared = compare_models(make(), make(zero=True), packed={"wide": 47})
    assert compared.names == ["wide", "norm", "head"]
    assert compared.before["wide"].nonzeros == 160
    assert compared.after["wide"].nonzeros < 160
    assert compared.after["wide"].distinct == 2
    assert compared.gzip_after["wide"] < compared.gzip_before["wide"] / 3
    assert compared.gzip_after["head"] == compared.gzip_before["head"] > 300
    assert compared.bits("wide") == 8 * 47 / 180
    assert 6 < compared.bits("head") <= np.log2(100)
    assert compared.bits("other") is None
    text = str(compared)
    assert "160 → " in text
    assert "720" in text
    assert text.count("→") >= 5


def test_layers_of_equal_name_in_nested_models_and_cells_inside_wrappers(tmp_path):
    def branch(name):
        inputs = keras.Input((6, 8))
        x = layers.Dense(5, name="same")(inputs)
        return keras.Model(inputs, x, name=name)

    inputs = keras.Input((6, 8))
    x = layers.Concatenate()([branch("left")(inputs), branch("right")(inputs)])
    x = layers.Bidirectional(layers.GRU(4), name="both")(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    clustered = tfc.cluster(model, 4)
    packed = tfc.pack(clustered, tmp_path / "model.packed").layer_bytes()
    compared = compare_models(model, clustered, packed=packed)
    assert compared.names == [row.name for row in compared.before.rows]
    for name in compared.names:
        assert compared.before[name].parameters == compared.after[name].parameters
        assert compared.before[name].macs == compared.after[name].macs
        assert compared.packed[name] > 0
    assert compared.after["right_same"].distinct == 4
    assert sum(compared.packed.values()) == sum(packed.values())


def test_a_quantized_model_is_smaller():
    model = make()
    data = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    int8 = tfc.quantize(model, calibration_data=data)
    compared = compare_models(model, int8)
    assert compared.after["wide"].bytes < compared.before["wide"].bytes / 2.5
    assert compared.gzip_after["wide"] < compared.gzip_before["wide"] / 2
    assert "720 → 240" in str(compared)
    four = compare_models(model, tfc.quantize(model, "int4", calibration_data=data))
    assert four.gzip_after["wide"] < compared.gzip_after["wide"]
    # Keras would write a float file with operators that round.
    with pytest.raises(ValueError, match=r"Expected tfcompress\.export_tflite"):
        int8.export("model.tflite", format="litert")
