import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.analysis.comparison.file_weights import kernels
from tfcompress.export.files import gzip_size
from tfcompress.export.flatbuffer.figures import file_figures


@pytest.fixture(scope="module")
def compared(model_files, digits):
    """The trained classifier as Keras, float and int8 file, on the test digits."""
    model = keras.saving.load_model(model_files / "model.keras", compile=False)
    files = {"file": model_files / "float.tflite", "int8": model_files / "int8.tflite"}
    return model, tfc.compare({"float": model, **files}, digits[1], runs=3)


def test_figures_of_models_and_files(compared, model_files, digits):
    model, report = compared
    x, y = digits[1]
    expected = model.predict(x, verbose=0)
    own, same, int8 = (report[name] for name in ("float", "file", "int8"))
    assert own.scores.accuracy == pytest.approx(np.mean(expected.argmax(-1) == y))
    assert own.scores.accuracy == same.scores.accuracy
    assert (own.agreement.top1, own.agreement.largest) == (1.0, 0.0)
    assert same.agreement.largest < 1e-4
    assert 0.95 < int8.agreement.top1 <= 1
    outputs = tfc.Runner(model_files / "int8.tflite").predict(x)
    (found,) = outputs.values()
    assert int8.agreement.largest == pytest.approx(np.abs(found - expected).max())
    data = (model_files / "int8.tflite").read_bytes()
    assert (int8.num_bytes, int8.gzip_bytes) == (len(data), gzip_size(data))
    # A Keras model's bytes are those of its float file, not of its .keras.
    assert own.num_bytes == pytest.approx(same.num_bytes, rel=0.2)
    assert own.num_bytes < (model_files / "model.keras").stat().st_size
    weights = 64 * 32 + 32 + 32 * 10 + 10
    assert [m.parameters for m in report.models] == [weights] * 3
    assert [m.macs for m in report.models] == [64 * 32 + 320] * 3
    assert own.activation_bytes == 4 * int8.activation_bytes
    assert all(m.latency_ms > 0 and m.latency_ratio.median > 0 for m in report.models)
    assert report.cpu


def test_text_json_and_notebook(compared):
    _, report = compared
    text = str(report)
    for expected in (
        "Precision, recall and F1 by class",
        "peak memory",
        "calibration error",
        "same top-1",
        report.cpu,
        "360 samples",
    ):
        assert expected in text
    content = json.loads(json.dumps(report.to_dict(), default=dict))
    assert content["models"][2]["scores"]["accuracy"] == report["int8"].scores.accuracy
    page = report._repr_html_()
    assert page.count("<table>") == 3
    assert "─" not in page
    assert "<td class=n>100.00%</td>" in page


def test_the_page_needs_no_other_file(compared, tmp_path):
    _, report = compared
    path = report.save_html(tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    # Two trade-offs, recalls, three confusions, zeros, a histogram for each of two kernels.
    assert page.count("<svg") == 2 + 1 + 3 + 1 + 2
    assert not re.search(r"(src|href)=|https?://|@import", page)
    assert "nan" not in page.lower().replace("nano", "")
    with pytest.raises(ValueError, match=r"ends in \.html"):
        report.save_html(tmp_path / "page.txt")


def test_a_quantized_model_is_as_large_as_its_file(tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype(np.float32)
    int8 = tfc.quantize(model, calibration_data=data)
    int8.compile("adam", "mse")
    int8.fit(data, np.zeros((32, 3)), verbose=0)
    report = tfc.export_tflite(int8, tmp_path / "model.tflite")
    found = tfc.compare({"a": int8, "b": tmp_path / "model.tflite", "c": model}, data, runs=0)
    assert found["a"].kind == "Keras, int8"
    assert found["a"].num_bytes == found["b"].num_bytes == report.num_bytes < found["c"].num_bytes
    assert found["b"].agreement.top1 == 1
    assert found["a"].scores is None
    # A batch norm is folded: kernel, bias, kernel, bias.
    assert found["a"].parameters == 36 + 4 + 4 * 36 * 3 + 3
    assert found["a"].macs == 36 * 36 + 144 * 3
    assert "recall" not in str(found)
    # What rounding does to each tensor is there for the model alone, and on the page.
    assert list(found.layers) == ["a"]
    assert next(e.name for e in found.layers["a"]) == inputs.name
    assert min(e.snr_db for e in found.layers["a"]) > 25
    content = json.loads(json.dumps(found.to_dict(), default=str))
    assert len(content["layers"]["a"]) == len(found.layers["a"]) == 3
    page = found.save_html(tmp_path / "page.html").read_text("utf-8")
    for head in ("<h2>Layers of a", "<h3>Signal-to-noise ratio", "<h3>Codes in use", "<h2>Zeros"):
        assert head in page
    # Kernels of the file, with their scales, are those of the model.
    ours = {k.values.size: k.values for k in kernels((tmp_path / "model.tflite").read_bytes())}
    dense = next(layer for layer in int8.layers if layer.name.startswith("dense"))
    expected = next(iter(dense.effective_weights().values()))
    np.testing.assert_allclose(ours[432], np.asarray(expected).T.reshape(3, 144), atol=1e-6)


def test_what_no_file_holds_is_said(digits):
    x, y = digits[1]
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    scheme = tfc.Scheme(activations=tfc.ActivationScheme(4, symmetric=True))
    with pytest.warns(UserWarning, match="activations of 4 bits"):
        four = tfc.quantize(model, scheme, calibration_data=x[:64])
    found = tfc.compare({"float": model, "four": four}, (x[:64], y[:64]), runs=2)
    assert found["four"].num_bytes is None
    assert found["four"].scores is not None
    assert any("four has no .tflite" in note for note in found.notes)


def test_several_inputs_outputs_and_datasets(digits):
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    both = layers.Add()([a, b])
    heads = {"sum": layers.Dense(2)(both), "value": layers.Dense(1)(both)}
    model = keras.Model([a, b], heads)
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(20, 4)).astype(np.float32) for name in "ab"}
    y = rng.normal(size=(20, 1)).astype(np.float32)
    with pytest.raises(ValueError, match=r"sum, value\. Received: output=None"):
        tfc.compare({"m": model}, x, runs=0)
    found = tfc.compare({"m": model}, (x, y), output="value", runs=0)
    expected = np.abs(model(x)["value"].numpy() - y).mean()
    assert found["m"].scores.mean_absolute_error == pytest.approx(float(expected), rel=1e-5)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
    assert tfc.compare({"m": model}, dataset, output="value", runs=0).to_dict() == found.to_dict()
    # The largest of several targets is no class.
    labels = {"sum": rng.normal(size=(20, 2)), "value": y}
    found = tfc.compare({"m": model}, (x, labels), output="sum", runs=0)
    assert found["m"].agreement.top1 is None
    assert tfc.compare({"m": model}, x, output="sum", runs=0)["m"].agreement.top1 == 1


def test_wrong_arguments(model_files, tmp_path, digits):
    x = digits[1][0]
    path = model_files / "int8.tflite"
    with pytest.raises(ValueError, match="dict of name"):
        tfc.compare([path], x)
    with pytest.raises(ValueError, match="reference among"):
        tfc.compare({"a": path}, x, reference="b")
    with pytest.raises(TypeError, match="Keras model, or the path"):
        tfc.compare({"a": 3}, x)
    with pytest.raises(ValueError, match=r"shape \(8, 8, 1\), which 'a' takes.*\(8, 8\)"):
        tfc.compare({"a": path}, x[..., 0])
    with pytest.raises(ValueError, match="label for each of the 360"):
        tfc.compare({"a": path}, (x, np.zeros(3)))
    three = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"one shape. Received: \(10,\) from 'a' and \(3,\)"):
        tfc.compare({"a": path, "b": three}, x, runs=0)
    (tmp_path / "bad.tflite").write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="TFLite flatbuffer"):
        tfc.compare({"a": tmp_path / "bad.tflite"}, x)


def test_figures_of_operators(two_layers):
    figures, expected = two_layers
    assert figures.macs == expected


@pytest.fixture(scope="module")
def two_layers():
    inputs = keras.Input((6, 6, 2), batch_size=1)
    x = layers.DepthwiseConv2D(3, use_bias=False)(inputs)
    x = layers.Conv2DTranspose(5, 2, strides=2, use_bias=False)(x)
    y = layers.Reshape((64, 5))(x)
    y = layers.Dot(axes=2)([y, y])
    model = keras.Model(inputs, y)
    data = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    macs = 4 * 4 * 2 * 9 + 4 * 4 * 2 * (2 * 2 * 5) + 64 * 64 * 5
    return file_figures(tfc.inspect_tflite(data)), macs
