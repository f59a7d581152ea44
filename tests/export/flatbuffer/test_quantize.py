"""Every code and scale of the file is that of the plan."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from keras import layers

import tfcompress as tfc
from tfcompress.export.flatbuffer.constants import pack, tflite_layout
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.lowering.bake import bake
from tfcompress.model.compressed import is_compressed


@pytest.fixture(scope="module")
def images(digits):
    return digits[0][0][:200]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(image)
    norm = layers.BatchNormalization(beta_initializer="normal", name="norm")
    x = layers.ReLU()(norm(x))
    # A negative γ turns the signs of a channel's codes.
    norm.gamma.assign([1.0, -0.7, 1.5, -1.0, 0.5, 1.0, 2.0, 0.1])
    deep = layers.DepthwiseConv2D(3, padding="same", bias_initializer="normal", name="depth")(x)
    steps = layers.Conv1D(8, 3, bias_initializer="normal", name="conv1d")(
        layers.Reshape((8, 64))(x)
    )
    up = layers.Conv2DTranspose(4, 2, 2, bias_initializer="normal", name="up")(x)
    dense = layers.Dense(12, bias_initializer="normal", name="dense")(layers.Flatten()(deep))
    return keras.Model(image, {"dense": dense, "up": up, "steps": steps})


SCHEMES = {
    "w4a8": tfc.Scheme(tfc.WeightScheme(4)),
    "w4a8_per_tensor": tfc.Scheme(tfc.WeightScheme(4, per_channel=False)),
    "w3a8": tfc.Scheme(tfc.WeightScheme(3)),
    "percentile": tfc.Scheme(tfc.WeightScheme(observer=tfc.Percentile(95.0))),
    "least_squares_w4": tfc.Scheme(tfc.WeightScheme(4, observer=tfc.LeastSquares(20))),
    "mean_std_per_tensor": tfc.Scheme(tfc.WeightScheme(per_channel=False, observer=tfc.MeanStd(2))),
    "power_of_two": tfc.Scheme(
        tfc.WeightScheme(power_of_two=True), tfc.ActivationScheme(power_of_two=True, symmetric=True)
    ),
    "truncated_weights": tfc.Scheme(tfc.WeightScheme(rounding="truncate")),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_that_the_file_can_hold_agrees(name, model, images, tmp_path):
    quantized = tfc.quantize(model, SCHEMES[name], calibration_data=images)
    path = tmp_path / "model.tflite"
    report = tfc.export_tflite(quantized, path, min_agreement=0.99)
    assert not report.float_tensors
    assert not report.unverified
    summary = inspect_tflite(path.read_bytes())
    kernels = {layer.name: layer for layer in report.layers}
    limit = 2 ** (kernels["dense"].num_bits - 1) - 1
    assert kernels["dense"].distinct <= 2 * limit + 1
    dense = next(t for t in summary.constants if t.shape == (12, 512))
    # Packed where the runtime is fast with it, and nowhere else.
    bits = kernels["dense"].num_bits
    assert dense.dtype == ("int2" if bits == 2 else "int4" if bits <= 4 else "int8")
    assert kernels["dense"].stored == dense.dtype
    others = [t.dtype for t in summary.constants if len(t.shape) == 4]
    assert set(others) == {"int8"}
    if dense.dtype == "int4":
        assert dense.num_bytes == 12 * 512 // 2
        assert summary.min_runtime_version >= "2.11.0"
        file = flatbuffer_utils.convert_bytearray_to_object(bytearray(path.read_bytes()))
        fully = schema.BuiltinOperator.FULLY_CONNECTED
        versions = {c.version for c in file.operatorCodes if c.builtinCode == fully}
        assert min(versions) >= 10


def test_what_the_file_holds_is_what_was_baked(model, images, tmp_path):
    quantized = tfc.quantize(model, SCHEMES["percentile"], calibration_data=images)
    path = tmp_path / "model.tflite"
    tfc.export_tflite(quantized, path)
    summary = inspect_tflite(path.read_bytes())
    for layer in quantized.layers:
        if not is_compressed(layer):
            continue
        _, _, baked = bake(layer)
        scale = np.sort(np.unique(np.float32(baked.scale)))
        assert any(
            len(t.scales) == baked.scale.size
            and np.allclose(np.sort(np.unique(np.float32(t.scales))), scale, rtol=1e-6)
            for t in summary.constants
        ), layer.name


@pytest.mark.parametrize("keys", [("b", "a"), ("a", "b")])
def test_equal_kernels_of_several_signatures_keep_their_own_biases(keys, tmp_path):
    """As `share_weights` makes them: the file orders its subgraphs by key, whatever was given."""
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(12, 16)) * 0.3, rng.normal(size=(64, 12)).astype("float32")
    models, data = {}, {}
    for key, bias, size in zip(keys, (-0.7, 0.9), (1.0, 7.0), strict=True):
        inputs = keras.Input((12,), name="x")
        dense = layers.Dense(16, activation="relu", name="dense")
        model = keras.Model(inputs, layers.Dense(3, name="head")(dense(inputs)))
        dense.kernel.assign(kernel)
        dense.bias.assign(np.full(16, bias))
        data[key] = size * x
        models[key] = tfc.quantize(tfc.cluster(model, 5), calibration_data=data[key])
    path = tmp_path / "both.tflite"
    report = tfc.export_tflite(models, path, verify_data=data)
    assert report.agreement == 1.0
    with pytest.raises(ValueError, match=r"`verify_data` by the keys .*'typo'"):
        tfc.export_tflite(models, path, verify_data={"typo": x})


def test_equal_kernels_of_one_model_keep_their_own_biases(tmp_path):
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(12, 16)) * 0.3, rng.normal(size=(64, 24)).astype("float32")
    first, second = keras.Input((12,), name="first"), keras.Input((12,), name="second")
    # Made in the other order than they are listed.
    late, early = layers.Dense(16, "relu", name="zz"), layers.Dense(16, "relu", name="aa")
    outputs = {"p": early(second), "q": late(first)}
    model = keras.Model([first, second], outputs)
    for layer, bias in ((late, 1.5), (early, -0.5)):
        layer.kernel.assign(kernel)
        layer.bias.assign(np.full(16, bias))
    data = [x[:, :12], 5 * x[:, 12:]]
    quantized = tfc.quantize(tfc.cluster(model, 5), calibration_data=data)
    report = tfc.export_tflite(quantized, tmp_path / "one.tflite", verify_data=data)
    assert report.agreement == 1.0


def test_int4_packing():
    packed = pack(np.int8([[1, -1, 7], [-7, 0, 3]]), 4)
    assert packed.tolist() == [0xF1, 0x97, 0x30]
    assert pack(np.int8([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack(np.int8([1, 0, -1, -2, 1]), 2).tolist() == [0b10110001, 0b01]


def test_layouts():
    assert tflite_layout(np.zeros((3, 2, 4, 5)), "Conv2D").shape == (5, 3, 2, 4)
    assert tflite_layout(np.zeros((3, 2, 4, 5)), "DepthwiseConv2D").shape == (3, 2, 20)
    assert tflite_layout(np.zeros((3, 2, 4, 5)), "Conv2DTranspose").shape == (4, 3, 2, 5)
    assert tflite_layout(np.zeros((7, 5)), "Dense").shape == (5, 7)


def test_equal_convolutions_that_the_converter_merges_are_parted(tmp_path):
    """A ReLU and a sum behind one identity convolution are each computed in int8."""
    inputs = keras.Input((8, 8, 4), name="image")
    x = keras.layers.MaxPooling2D(2)(keras.layers.Conv2D(6, 3, padding="same")(inputs))
    outputs = {
        "sum": keras.layers.Rescaling(1.0, 0.5, name="scaled")(x),
        "relu": keras.layers.ReLU(name="alone")(x),
    }
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 4)).astype(np.float32)
    quantized = tfc.quantize(keras.Model(inputs, outputs), calibration_data=images)
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=images)
    assert (report.agreement, report.float_tensors) == (1.0, {})
    assert report.ops["DEPTHWISE_CONV_2D"] == 2


def test_a_relu_of_merged_convolutions_belongs_to_one_of_them(tmp_path):
    """The smaller of a tensor and a number is an identity convolution, as a ReLU is."""
    inputs = keras.Input((8, 8, 4), name="image")
    x = keras.layers.Conv2D(6, 3, padding="same")(inputs)
    y = keras.layers.Conv2D(5, 3, padding="same")(inputs)
    outputs = {
        "relu": keras.layers.ReLU(name="alone")(x),
        "smaller": keras.ops.minimum(x, 0.4),
        "smallest": keras.ops.minimum(y, -0.1),
        "up_to_one": keras.layers.ReLU(max_value=1.0)(y),
    }
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 4)).astype(np.float32)
    quantized = tfc.quantize(keras.Model(inputs, outputs), calibration_data=images)
    tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_samples=0)
    runner = tfc.Runner((tmp_path / "m.tflite").read_bytes())
    found, expected = runner.predict(images), quantized.predict(images, verbose=0)
    for name in outputs:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def test_an_average_of_one_value_has_the_codes_of_its_input(tmp_path):
    inputs = keras.Input((4, 4, 1), name="image")
    x = keras.ops.mean(inputs, axis=-1, keepdims=True)
    model = keras.Model(inputs, keras.layers.Conv2D(3, 3, name="conv")(x))
    images = np.random.default_rng(0).normal(size=(32, 4, 4, 1)).astype(np.float32)
    quantized = tfc.quantize(model, calibration_data=images)
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=images)
    assert (report.agreement, report.float_tensors) == (1.0, {})
    assert report.ops == {"CONV_2D": 1}


def test_a_symmetric_scheme_leaves_fixed_ranges_as_they_are_prescribed(tmp_path):
    inputs = keras.Input((6,), name="x")
    outputs = keras.layers.Softmax()(keras.layers.Dense(5)(inputs))
    scheme = tfc.Scheme(activations=tfc.ActivationScheme(symmetric=True))
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    quantized = tfc.quantize(keras.Model(inputs, outputs), scheme, calibration_data=x)
    assert tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=x).agreement > 0.99
