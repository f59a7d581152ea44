"""Two inventories side by side."""

import keras
import numpy as np
from keras import layers

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
