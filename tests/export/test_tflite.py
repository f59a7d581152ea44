"""`export_tflite` from end to end: what it writes, reports and refuses."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.runtime.runner import Runner
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize


@pytest.fixture(scope="module")
def digits_images(digits):
    return digits[0][0][:200]


@pytest.fixture(scope="module")
def float_model(digits_images):
    """Two inputs by name, two outputs in a dict."""
    keras.utils.set_random_seed(0)
    image, scale = keras.Input((8, 8, 1), name="image"), keras.Input((4,), name="extra")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Concatenate()([layers.Flatten()(x), scale])
    heads = {
        "logits": layers.Dense(5, name="dense", bias_initializer="uniform")(x),
        "embedding": layers.Dense(3, name="other", activation="tanh")(x),
    }
    return keras.Model([image, scale], heads, name="two")


@pytest.fixture(scope="module")
def data(digits_images):
    extra = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    return {"image": digits_images, "extra": extra}


@pytest.fixture(scope="module")
def quantized(float_model, data):
    return tfc.quantize(float_model, calibration_data=data)


@pytest.fixture(scope="module")
def exported(quantized, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "two.tflite"
    return tfc.export_tflite(quantized, path, min_agreement=0.98), path


def test_the_report(exported):
    report, path = exported
    summary = inspect_tflite(path.read_bytes())
    assert (report.num_bytes, report.gzip_bytes) == (summary.num_bytes, summary.gzip_bytes)
    assert report.num_bytes == path.stat().st_size
    assert report.ops == summary.op_counts
    assert (report.float_num_bytes, report.float_gzip_bytes) == (None, None)
    assert (report.float_tensors, report.flex_ops, report.unverified) == ({}, (), ())
    assert report.fully_delegated
    assert report.num_partitions == 1
    by_name = {layer.name: layer for layer in report.layers}
    assert set(by_name) == {"conv", "depthwise", "dense", "other"}
    assert [by_name[n].num_scales for n in ("conv", "depthwise", "dense")] == [4, 4, 5]
    assert by_name["dense"].num_weights == 5 * (4 * 4 * 4 + 4)
    assert all(layer.num_bits == 8 for layer in report.layers)
    assert all(layer.pruned == 0 for layer in report.layers)
    assert report.dense_gzip_bytes is None
    parity = {p.output: p for p in report.parity["serving_default"]}
    assert set(parity) == {"logits", "embedding"}
    assert report.agreement == min(p.equal for p in parity.values()) >= 0.98
    # Without verify_data the calibration data kept by `quantize` is run.
    assert parity["logits"].samples == 200
    assert report.verified_on == {"serving_default": "calibration data"}
    text = str(report)
    for word in ("XNNPACK takes every op", "No float tensor", "embedding", "depthwise", "gzip"):
        assert word in text
    json.dumps(report.to_dict())


def test_names_types_and_values_of_the_signature(exported, quantized, data):
    _, path = exported
    runner = Runner(path)
    assert set(runner.inputs) == {"image", "extra"}
    assert set(runner.outputs) == {"logits", "embedding"}
    for info in (*runner.inputs.values(), *runner.outputs.values()):
        assert info.dtype == np.int8
        assert info.shape[0] == 1
    scale = quantized.get_layer("image_quantizer").scale.numpy()
    assert runner.inputs["image"].scale == pytest.approx(float(scale), rel=1e-6)
    codes = runner.run_codes(data)["logits"]
    info = runner.outputs["logits"]
    real = (codes.astype(np.float32) - info.zero_point) * np.float32(info.scale)
    expected = quantized.predict(data, verbose=0)["logits"]
    assert np.abs(real - expected).max() <= 1.01 * info.scale
    bundle = json.loads(path.with_suffix(".json").read_text())
    assert "logits" in json.dumps(bundle)


@pytest.fixture
def conversions(converter, monkeypatch):
    """The keyword arguments of every conversion, in order."""
    convert, jobs = type(converter).convert, []
    monkeypatch.setattr(
        type(converter), "convert", lambda *a, **k: jobs.append(k) or convert(*a, **k)
    )
    return jobs


def test_the_float_model_is_converted_where_its_size_is_asked_for(quantized, tmp_path, conversions):
    path = tmp_path / "a.tflite"
    report = tfc.export_tflite(quantized, path)
    assert len(conversions) == 1
    size = _size_table(report)
    assert "float" not in size
    assert "ratio" not in size
    assert f"{report.num_bytes:,}" in size
    data = path.read_bytes()
    compared = tfc.export_tflite(quantized, path, compare_float=True)
    assert len(conversions) == 3
    assert path.read_bytes() == data
    assert compared.float_num_bytes > compared.float_gzip_bytes > 1000
    size = _size_table(compared)
    assert f"{compared.num_bytes / compared.float_num_bytes:.3f}" in size
    assert f"{compared.float_num_bytes:,}" in size
    same = {"float_num_bytes": None, "float_gzip_bytes": None}
    assert {**compared.to_dict(), **same} == report.to_dict()


def _size_table(report):
    return str(report).removeprefix(report.path).split("Ops:")[0]


def test_a_float_file_is_converted_once(float_model, conversions, tmp_path):
    """It is its own float size; a VGG16's second conversion would take gigabytes."""
    report = tfc.export_tflite(float_model, tmp_path / "float.tflite", allow_float=True)
    assert len(conversions) == 1
    assert report.float_num_bytes == report.num_bytes == (tmp_path / "float.tflite").stat().st_size


def test_float_io(quantized, data, tmp_path):
    path = tmp_path / "float.tflite"
    report = tfc.export_tflite(quantized, path, float_io=True, verify_data=data)
    runner = Runner(path)
    assert {i.dtype for i in (*runner.inputs.values(), *runner.outputs.values())} == {
        np.dtype(np.float32)
    }
    assert report.ops["QUANTIZE"] >= 2
    assert report.ops["DEQUANTIZE"] == 2
    assert report.agreement >= 0.98


def test_several_signatures_share_their_layers(tmp_path, digits_images):
    inputs = keras.Input((8, 8, 1), name="image")
    body = layers.Dense(256, name="body")(layers.Flatten()(inputs))
    heads = [layers.Dense(2, name="small")(body), layers.Dense(7, name="large")(body)]
    both = tfc.quantize(keras.Model(inputs, heads), calibration_data=digits_images)
    models = {
        name: keras.Model(both.inputs, both.outputs[i]) for i, name in enumerate(("two", "seven"))
    }
    report = tfc.export_tflite(
        models, tmp_path / "m.tflite", verify_data=dict.fromkeys(models, digits_images)
    )
    assert set(report.parity) == {"two", "seven"}
    assert report.agreement >= 0.97
    assert Runner(tmp_path / "m.tflite", signature="seven").run_codes(digits_images[:2])
    assert [p.output for outputs in report.parity.values() for p in outputs] == ["small", "large"]
    # The shared kernel of 16,384 codes is in the file once.
    assert report.constant_num_bytes < 2 * 64 * 256
    with pytest.raises(ValueError, match="at least one signature"):
        tfc.export_tflite({}, tmp_path / "m.tflite")


def test_a_plain_float_model_is_calibrated_on_the_way(float_model, data, tmp_path):
    before = float_model.get_weights()
    report = tfc.export_tflite(float_model, tmp_path / "a.tflite", calibration_data=data)
    assert not report.float_tensors
    assert report.agreement >= 0.98
    for a, b in zip(before, float_model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    sequential = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="last")])
    plain = tfc.export_tflite(
        sequential, tmp_path / "b.tflite", allow_float=True, verify_data=data["extra"]
    )
    assert plain.parity["serving_default"][0].output == "last"
    assert plain.agreement == 1.0


def refused_cases():
    dense = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="last")])
    inputs = keras.Input((None, 4))
    open_shape = keras.Model(inputs, layers.Dense(2)(inputs))
    weights, activations = tfc.WeightScheme, tfc.ActivationScheme

    def with_scheme(scheme):
        return lambda x: tfc.quantize(dense, scheme, calibration_data=x)

    # Name → (model from samples, part of the message).
    return {
        "float_without_data": (lambda x: dense, "or calibration_data to quantize one with"),
        "no_ranges": (lambda x: tfc.quantize(dense), "every quantizer to have a range"),
        "affine_weights": (
            with_scheme(tfc.Scheme(weights(symmetric=False))),
            "last: affine weights",
        ),
        "wide_weights": (with_scheme(tfc.Scheme(weights(narrow_range=False))), "code −128"),
        "a4": (
            with_scheme(tfc.Scheme(activations=activations(4, symmetric=True))),
            "symmetric activations of 4 bits",
        ),
        "truncated": (
            with_scheme(tfc.Scheme(activations=activations(rounding="truncate"))),
            "truncated activations",
        ),
        "narrow": (
            with_scheme(tfc.Scheme(activations=activations(narrow_range=True))),
            "narrow-range activations",
        ),
        "open_shape": (
            lambda x: tfc.quantize(open_shape, calibration_data=x[:, None]),
            "inputs of known shape",
        ),
    }


@pytest.mark.filterwarnings("ignore:No .tflite file can hold")
@pytest.mark.parametrize("name", refused_cases())
def test_what_is_refused_leaves_no_file(name, tmp_path):
    make, message = refused_cases()[name]
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        tfc.export_tflite(make(x), tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def test_too_little_agreement_is_refused_and_an_older_file_stays(quantized, tmp_path, data):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"older")
    with pytest.raises(ValueError, match=r"at least 100.00% .*Nothing was written"):
        tfc.export_tflite(_with_an_offset(quantized), path, min_agreement=1.0, verify_data=data)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("model.tflite", b"older")]


def test_without_data_the_file_is_verified_on_synthetic_inputs(quantized, tmp_path):
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    report = tfc.export_tflite(loaded, tmp_path / "a.tflite", verify_samples=40, min_agreement=0.95)
    assert report.verified_on == {"serving_default": "synthetic inputs"}
    assert {p.samples for p in report.parity["serving_default"]} == {40}
    assert "on synthetic inputs" in str(report)
    # They reach the ends of the ranges, so many codes occur.
    assert all(p.distinct > 20 for p in report.parity["serving_default"])
    none = tfc.export_tflite(loaded, tmp_path / "a.tflite", verify_samples=0)
    assert (none.parity, none.agreement, none.verified_on) == ({}, None, {"serving_default": ""})
    assert "was not compared with the Keras model" in str(none)
    with pytest.raises(ValueError, match="to measure the agreement that min_agreement asks for"):
        tfc.export_tflite(loaded, tmp_path / "a.tflite", verify_samples=0, min_agreement=0.5)
    with pytest.raises(ValueError, match="verify_samples of 0 or more"):
        tfc.export_tflite(loaded, tmp_path / "a.tflite", verify_samples=-1)


def test_verify_samples_limits_given_data(quantized, tmp_path, data):
    report = tfc.export_tflite(quantized, tmp_path / "a.tflite", verify_data=data, verify_samples=7)
    assert report.verified_on == {"serving_default": "verify_data"}
    assert {p.samples for p in report.parity["serving_default"]} == {7}


def test_a_low_agreement_without_a_limit_warns(quantized, tmp_path, data):
    model = _with_an_offset(quantized)
    with pytest.warns(UserWarning, match=r"only \d+\.\d\d% of the .*verify_data") as found:
        report = tfc.export_tflite(model, tmp_path / "a.tflite", verify_data=data)
    assert report.agreement < 0.9
    assert found[0].filename == __file__
    # With a limit there is no warning.
    tfc.export_tflite(model, tmp_path / "a.tflite", verify_data=data, min_agreement=0.0)


def test_a_file_that_crashes_the_runtime_is_refused(quantized, converter, tmp_path, monkeypatch):
    def crash(self, data, name):
        raise tfc.ConversionError(f"LiteRT crashed on {name}")

    monkeypatch.setattr(type(converter), "check_loads", crash)
    with pytest.raises(tfc.ConversionError, match="LiteRT crashed on serving_default"):
        tfc.export_tflite(quantized, tmp_path / "a.tflite")
    assert list(tmp_path.iterdir()) == []


class Offset(keras.Model):
    """Computes what its file does not."""

    def __call__(self, *args, **kwargs):
        return {k: v + 10.0 for k, v in super().__call__(*args, **kwargs).items()}


def _with_an_offset(model):
    return Offset(model.inputs, model.output)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/model.tflite", "existing folder"),
        ("model.lite", "ends in .tflite"),
        ("folder.tflite", "ends in .tflite"),
    ],
)
def test_unwritable_paths_are_refused_before_the_work(path, message, tmp_path, quantized):
    (tmp_path / "folder.tflite").mkdir()
    with pytest.raises(ValueError, match=message):
        tfc.export_tflite(quantized, tmp_path / path)


def test_float_layers_are_accepted_if_the_configuration_asked_and_else_named(tmp_path, digits):
    x = digits[0][0][:64]
    inputs = keras.Input((8, 8, 1))
    y = layers.Dense(4, name="first")(layers.Flatten(name="flat")(inputs))
    y = layers.Softmax(name="soft")(layers.Dense(3, name="second")(y))
    model = keras.Model(inputs, y)
    config = tfc.QuantizationConfig(by_name={"first": None, "soft": None})
    quantized = tfc.quantize(model, config, calibration_data=x)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for i, candidate in enumerate((quantized, loaded)):
        path = tmp_path / f"{i}.tflite"
        # A float output has steps of its span, which int8 inside the file does not keep.
        report = tfc.export_tflite(candidate, path, verify_data=x, min_agreement=0.5)
        assert set(report.float_tensors.values()) >= {"first"}
        # The runtime's own softmax is in int8 even so, and the output is dequantized.
        assert report.parity["serving_default"][0].within_one == 1.0
        bits = {layer.name: layer.num_bits for layer in report.layers}
        assert bits == {"second": 8, "first": 32}
    unasked = keras.Model(inputs, keras.ops.arctan2(*[layers.Conv2D(2, 3)(inputs)] * 2))
    quantized = tfc.quantize(unasked, calibration_data=x)
    with pytest.raises(ValueError, match=r"no float tensor .* ATAN2 of arctan2.*allow_float=True"):
        tfc.export_tflite(quantized, tmp_path / "c.tflite")
    assert not (tmp_path / "c.tflite").exists()
    report = tfc.export_tflite(quantized, tmp_path / "c.tflite", allow_float=True)
    assert "arctan2" in report.float_tensors.values()


def test_a_model_of_another_policy_and_one_with_a_layer_called_twice(tmp_path, digits_images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        inputs = keras.Input((8, 8, 1))
        conv = layers.Conv2D(1, 3, padding="same", activation="relu", name="conv")
        norm = layers.BatchNormalization(name="norm")
        x = norm(conv(layers.Rescaling(5.0)(norm(conv(inputs)))))
        model = keras.Model(inputs, layers.Dense(4, name="out")(layers.Flatten()(x)))
        quantized = tfc.quantize(model, calibration_data=digits_images)
    finally:
        keras.config.set_dtype_policy("float32")
    # Each call of the shared layer reads another range.
    transform = quantized.get_layer("conv").transformed.chains["kernel"][0]
    scales = [float(transform.input_quantizer(i).scale.numpy()) for i in (0, 1)]
    assert scales[0] != scales[1]
    report = tfc.export_tflite(quantized, tmp_path / "a.tflite", verify_data=digits_images)
    assert not report.float_tensors
    assert report.agreement >= 0.97
    (note,) = [note for note in report.platform_notes if "computes in 16 bits" in note]
    assert re.search(r"predict gives \d+\.\d\d% of the codes.*largest difference is \d", note)


def test_ranges_that_are_missing_come_from_calibration_data(tmp_path, digits_images):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3), layers.Flatten()])
    quantized = tfc.quantize(model)
    first = next(layer for layer in quantized.layers if isinstance(layer, FakeQuantize))
    first.set_range(0.0, 2.0)
    report = tfc.export_tflite(quantized, tmp_path / "a.tflite", calibration_data=digits_images)
    assert report.agreement >= 0.98
    (info,) = Runner(tmp_path / "a.tflite").inputs.values()
    # The known range is kept.
    assert info.scale == pytest.approx(2 / 255, rel=1e-5)
    assert tf.io.gfile.exists(str(tmp_path / "a.json"))


def test_a_channel_that_batch_norm_switches_off_agrees(tmp_path):
    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, use_bias=False)(inputs))
    outputs = layers.Flatten()(layers.Conv2D(6, 1)(layers.ReLU()(x)))
    model = keras.Model(inputs, outputs)
    gamma = rng.uniform(-2, 2, 8)
    gamma[[1, 4]] = 0
    beta, mean, variance = rng.normal(size=8), rng.normal(size=8), rng.uniform(0.5, 2, 8)
    model.get_layer("norm").set_weights([gamma, beta, mean, variance])
    x = rng.normal(size=(100, 8, 8, 3)).astype(np.float32)
    quantized = tfc.quantize(model, calibration_data=x)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=x)
    assert report.agreement == 1.0
    assert report.fully_delegated
    assert all(layer.smallest_scale > 0 for layer in report.layers)
