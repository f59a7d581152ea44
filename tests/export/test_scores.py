"""What an export says of accuracy, and what it refuses before the conversion."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc


@pytest.fixture
def classifier():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    return model, x, model.predict(x, verbose=0).argmax(-1)


def test_accuracy_before_and_after(classifier, tmp_path):
    model, x, y = classifier
    y[:20] = (y[:20] + 1) % 3
    quantized = tfc.quantize(model, calibration_data=x)
    path = tmp_path / "model.tflite"
    report = tfc.export_tflite(
        quantized, path, verify_data=(x, y), float_model=model, compare_float=True
    )
    # Weights that are not rounded hardly compress; those of the quantized model do.
    assert report.float_gzip_bytes > 0.9 * tfc.compare({"f": model}, x, runs=0)["f"].gzip_bytes
    (found,) = report.scores.values()
    assert list(found) == ["float model", "Keras model", "file"]
    assert found["float model"].accuracy == 0.75
    outputs = tfc.Runner(path).predict(x)
    (values,) = outputs.values()
    assert found["file"].accuracy == np.mean(values.argmax(-1) == y)
    assert found["Keras model"].accuracy == found["file"].accuracy
    change = f"{(found['file'].accuracy - 0.75) * 100:+.2f} points"
    assert "Against the labels" in str(report)
    assert change in str(report)
    card = json.loads((tmp_path / "model.json").read_text("utf-8"))
    assert card["report"]["scores"]["serving_default"]["float model"]["accuracy"] == 0.75
    # By default it is the model that was quantized, while that is there and as it was.
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(30)
    again = tfc.export_tflite(quantized, path, verify_data=batches)
    assert again.scores["serving_default"]["float model"].accuracy == 0.75
    model.layers[0].kernel.assign(2 * model.layers[0].kernel)
    again = tfc.export_tflite(quantized, path, verify_data=batches)
    assert list(again.scores["serving_default"]) == ["Keras model", "file"]
    assert "What compression cost is not known" in str(again)
    # A float model that the export itself quantizes is the one to compare with.
    own = tfc.export_tflite(model, path, calibration_data=x, verify_data=(x, y))
    assert own.scores["serving_default"]["float model"].accuracy == 0.75


def test_several_outputs(tmp_path):
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(8, "relu")(inputs)
    outputs = {"kind": layers.Dense(3, name="kind")(hidden), "size": layers.Dense(1)(hidden)}
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    expected = model.predict(x, verbose=0)
    y = {"kind": expected["kind"].argmax(-1), "size": expected["size"] + np.float32(0.5)}
    y["kind"][:20] = (y["kind"][:20] + 1) % 3
    quantized, path = tfc.quantize(model, calibration_data=x), tmp_path / "model.tflite"
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(30)
    for data in ((x, y), batches):
        report = tfc.export_tflite(quantized, path, verify_data=data)
        kind, size = (report.scores[f"serving_default/{name}"] for name in ("kind", "size"))
        assert kind["float model"].accuracy == 0.75
        assert size["float model"].mean_absolute_error == pytest.approx(0.5, abs=1e-4)
        assert size["file"].mean_absolute_error == pytest.approx(0.5, abs=0.05)
        assert kind["file"].accuracy == kind["Keras model"].accuracy
        assert str(report).count("Against the labels") == 2
    found = tfc.compare({"float": model, "file": path}, (x, y), output="kind", runs=0)
    assert found["float"].scores.accuracy == 0.75
    assert found["file"].scores.accuracy == kind["file"].accuracy
    (only,) = tfc.export_tflite(quantized, path, verify_data=(x, {"kind": y["kind"]})).scores
    assert only == "serving_default/kind"
    for labels, text in ((y["kind"], "labels by output"), ({"sort": y["kind"]}, "'sort'")):
        with pytest.raises(ValueError, match=text):
            tfc.export_tflite(quantized, path, verify_data=(x, labels))
    with pytest.raises(ValueError, match="'serving_default/kind': 3"):
        tfc.export_tflite(quantized, path, labels=["a", "b"])
    with pytest.raises(ValueError, match="name of an output with labels: kind, size"):
        tfc.compare({"float": model}, (x, y), runs=0)


def test_targets(classifier, tmp_path):
    model, x, _ = classifier
    quantized = tfc.quantize(model, calibration_data=x)
    targets = model.predict(x, verbose=0) + np.float32(0.5)
    report = tfc.export_tflite(
        quantized, tmp_path / "m.tflite", verify_data=(x, targets), float_model=model
    )
    found = report.scores["serving_default"]
    assert found["float model"].mean_absolute_error == pytest.approx(0.5)
    assert "mean abs. error" in str(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_agreement": 99}, r"min_agreement in 0\.\.1"),
        ({"labels": ["a", "b"]}, r"as many labels as an output has values.*Received: 2"),
        ({"labels": np.arange(3)}, "list of class names"),
        ({"labels": "abc"}, "list of class names"),
        ({"preprocessing": "rescale"}, "list of steps"),
        ({"preprocessing": [{"op": "scale"}]}, "'op' of .*'rescale'"),
        ({"preprocessing": [{"op": "resize", "height": 4}]}, r"Add \['width'\]"),
        ({"preprocessing": [{"op": "color", "order": "RGB", "x": 1}]}, r"Leave out \['x'\]"),
        ({"preprocessing": [{"op": "rescale", "scale": "1/255"}]}, "'scale' of the step"),
        ({"verify_data": (np.zeros((4, 6), np.float32), np.zeros(3))}, "each of the 4 samples"),
    ],
)
def test_mistakes_are_found_before_the_conversion(
    classifier, tmp_path, monkeypatch, options, message
):
    from tfcompress.export import tflite

    def convert(*arguments):
        raise AssertionError("The conversion began.")

    monkeypatch.setattr(tflite, "convert", convert)
    model, x, _ = classifier
    quantized = tfc.quantize(model, calibration_data=x)
    with pytest.raises(ValueError, match=message):
        tfc.export_tflite(quantized, tmp_path / "m.tflite", **options)
