import shutil

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.export.files import gzip_size
from tfcompress.tools.compare import compare


def test_keras_against_int8(model_files, digits):
    found = compare(model_files / "model.keras", model_files / "int8.tflite", "digits")
    x, y = digits[1]
    model = keras.saving.load_model(model_files / "model.keras")
    accuracy = np.mean(model.predict(x, verbose=0).argmax(-1) == y)
    assert found.first.accuracy == pytest.approx(accuracy)
    assert found.first.accuracy > 0.7
    assert found.num_samples == 360
    assert 0.95 < found.top1_agreement <= 1.0
    assert 0.0 < found.mean_difference < found.max_difference < 1.0
    assert found.latency_ratio is None
    assert "not the phone's runtime" in found.latency_note
    assert found.second.gzip_bytes == gzip_size((model_files / "int8.tflite").read_bytes())


def test_a_file_equals_itself(model_files):
    path = model_files / "int8.tflite"
    found = compare(path, path, "digits", num_samples=50, runs=0)
    assert (found.top1_agreement, found.max_difference, found.mean_difference) == (1.0, 0.0, 0.0)
    assert found.num_samples == 50
    assert found.first == found.second


def test_keras_and_float_agree(model_files):
    found = compare(model_files / "model.keras", model_files / "float.tflite", "digits")
    assert found.top1_agreement == 1.0
    assert found.max_difference < 1e-4


def test_latency_of_two_files(model_files):
    found = compare(model_files / "float.tflite", model_files / "int8.tflite", "digits", runs=5)
    assert found.first.latency_ms > 0
    assert found.latency_ratio.lower_quartile <= found.latency_ratio.median
    text = str(found)
    assert " ms" in text
    assert f"x {found.second.num_bytes / found.first.num_bytes:.3f}" in text


def test_the_scale_reaches_the_model(model_files):
    path = model_files / "model.keras"
    as_is = compare(path, path, "digits")
    dark = compare(path, path, "digits", scale=0.0)
    assert as_is.first.accuracy > 0.7
    # One answer for all images.
    assert dark.first.accuracy < 0.2


def test_outputs_by_name(tmp_path):
    inputs = keras.Input((8, 8, 1))
    flat = layers.Flatten()(inputs)
    heads = {"a": layers.Dense(10)(flat), "b": layers.Dense(4)(flat), "c": layers.Dense(1)(flat)}
    keras.Model(inputs, heads).save(tmp_path / "heads.keras")
    path = tmp_path / "heads.keras"
    with pytest.raises(ValueError, match=r"a, b, c. Received: output=None.*--output"):
        compare(path, path, "digits")
    assert compare(path, path, "digits", output="a").top1_agreement == 1.0
    with pytest.raises(ValueError, match=r"\(batch, classes\). Received: \(360, 1\)"):
        compare(path, path, "digits", output="c")


def test_models_that_do_not_fit(model_files, tmp_path):
    path = model_files / "int8.tflite"
    x = np.zeros((3, 28, 28), np.uint8)
    y = np.zeros(3)
    np.savez(tmp_path / "big.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    for file in ("int8.tflite", "model.keras"):
        with pytest.raises(ValueError, match=r"shape \(8, 8, 1\).*Received: data.*\(28, 28, 1\)"):
            compare(model_files / file, path, tmp_path / "big.npz")
    inputs = keras.Input((8, 8, 1))
    keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs))).save(tmp_path / "three.keras")
    with pytest.raises(ValueError, match=r"one shape. Received: \(10,\).*\(3,\)"):
        compare(path, tmp_path / "three.keras", "digits")
    two = [keras.Input((8, 8, 1)), keras.Input((2,))]
    keras.Model(two, layers.Flatten()(two[0])).save(tmp_path / "two.keras")
    with pytest.raises(ValueError, match=r"one input. Received: .*with 2"):
        compare(tmp_path / "two.keras", path, "digits")


def test_wrong_files(model_files, tmp_path):
    path = model_files / "int8.tflite"
    with pytest.raises(ValueError, match=r"none\.keras', which does not exist"):
        compare(tmp_path / "none.keras", path, "digits")
    shutil.copy(path, tmp_path / "model.h5")
    with pytest.raises(ValueError, match=r"\.keras or \.tflite file. Received: .*model\.h5"):
        compare(path, tmp_path / "model.h5", "digits")
    with pytest.raises(ValueError, match="Received: 'imagenet'"):
        compare(path, path, "imagenet")
