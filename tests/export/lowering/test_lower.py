"""Lowering: what the converter gets, and that nothing it gets becomes float on the way."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.lowering.lower import lower
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize


@pytest.fixture(scope="module")
def images(digits):
    return digits[0][0][:200]


def batch_norm(x):
    norm = layers.BatchNormalization(
        beta_initializer="normal", gamma_initializer=keras.initializers.RandomUniform(0.5, 1.5)
    )
    return norm(x)


@pytest.fixture(scope="module")
def model():
    """What other toolkits leave in float, or quantize with one scale, without a word."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    flat = layers.Flatten()(x)
    outputs = {
        "dense_bn": batch_norm(layers.Dense(8, name="dense_a")(flat)),
        "dense_bn_relu": layers.ReLU()(batch_norm(layers.Dense(8, name="dense_b")(flat))),
        "swish": layers.Conv2D(6, 3, activation="swish", name="conv_swish")(x),
        "dilated": layers.Conv2D(6, 3, dilation_rate=2, name="conv_dilated")(x),
        "transpose": layers.ReLU()(
            batch_norm(layers.Conv2DTranspose(6, 2, 2, use_bias=False, name="transposed")(x))
        ),
        "depthwise": layers.ReLU()(batch_norm(layers.DepthwiseConv2D(3, name="depthwise")(x))),
    }
    model = keras.Model(image, outputs)
    # Channels of very different sizes, which one scale could not serve.
    kernel = model.get_layer("depthwise").kernel
    kernel.assign(kernel * np.float32([1, 0.01, 3, 0.1, 1, 0.001])[:, None])
    return model


def test_kernels_that_others_leave_in_float_are_int8_per_channel_in_the_file(
    model, images, tmp_path
):
    quantized = tfc.quantize(model, calibration_data=images)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    path = tmp_path / "model.tflite"
    report = tfc.export_tflite(loaded, path, verify_data=images)
    assert not report.float_tensors
    assert not report.unverified
    scales = {layer.name: layer.num_scales for layer in report.layers}
    assert scales == {
        "stem": 6,
        "dense_a": 8,
        "dense_b": 8,
        "conv_swish": 6,
        "conv_dilated": 6,
        "transposed": 6,
        "depthwise": 6,
    }
    kernels = [t for t in inspect_tflite(path.read_bytes()).constants if len(t.shape) in (2, 4)]
    assert {t.dtype for t in kernels} == {"int8"}
    depthwise = next(t for t in kernels if t.quantized_axis == 3 and len(set(t.scales)) == 6)
    assert max(depthwise.scales) > 100 * min(depthwise.scales)
    assert report.agreement >= 0.98


def test_the_function_has_batch_one_the_names_and_constants_on_their_grids(model, images):
    quantized = tfc.quantize(model, calibration_data=images)
    names = sorted(model.output)
    lowered = lower(quantized, names)
    assert [(s.name, s.shape.as_list()) for s in lowered.specs] == [("image", [1, 8, 8, 1])]
    assert (lowered.float_inputs, lowered.float_outputs) == ([], [])
    assert {k.layer for k in lowered.kernels} >= {"stem", "depthwise"}
    function = tf.function(lowered.function, autograph=False)
    result = function(tf.constant(images[:1]))
    assert set(result) == set(names)
    # Every quantizer of the model is planned, with its scale and zero point, in a call of its own.
    quantizers = [layer for layer in quantized.layers if isinstance(layer, FakeQuantize)]
    assert {t.name.split("/")[1] for t in lowered.planned} == {q.name for q in quantizers}
    for quantizer in quantizers:
        found = [t for t in lowered.planned if t.name.split("/")[1] == quantizer.name]
        assert {(t.scale, t.zero_point) for t in found} == {
            (float(quantizer.scale.numpy()), int(quantizer.zero_point.numpy()))
        }
    assert {t.kernel.layer for t in lowered.planned if t.kernel} >= {"stem", "depthwise"}
    # No state is left: what trains afterwards does not change the function.
    stem = quantized.get_layer("stem")
    stem.kernel.assign(stem.kernel * 0.0)
    again = function(tf.constant(images[:1]))
    np.testing.assert_array_equal(again["swish"], result["swish"])


def test_float_ends_are_reported(images):
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(2, 3)(layers.Conv2D(2, 3, name="first")(inputs))
    model = keras.Model(inputs, layers.Softmax(name="soft")(layers.Flatten()(x)))
    config = tfc.QuantizationConfig(by_name={"first": None, "soft": None})
    lowered = lower(tfc.quantize(model, config, calibration_data=images), ["y"])
    assert (lowered.float_inputs, lowered.float_outputs) == (["image"], ["y"])


def test_an_open_shape_and_a_missing_range_are_refused(images):
    inputs = keras.Input((None, 1), name="sequence")
    open_shape = tfc.quantize(keras.Model(inputs, layers.Dense(2)(inputs)))
    with pytest.raises(ValueError, match=r"known shape. Received: 'sequence' of shape \(None, No"):
        lower(open_shape, ["y"])
    inputs = keras.Input((4,), name="x")
    without = tfc.quantize(keras.Model(inputs, layers.Dense(2)(inputs)))
    with pytest.raises(ValueError, match=r"quantizer to have a range and to be on.*x_quant"):
        lower(without, ["y"])


def test_a_ceiling_is_where_the_range_ends(images, tmp_path):
    inputs = keras.Input((8, 8, 1))
    fused = layers.ReLU(0.25, name="fused")(layers.Conv2D(4, 3)(inputs))
    alone = layers.ReLU(0.125, name="alone")(layers.MaxPooling2D(2)(fused))
    model = keras.Model(inputs, [fused, alone])
    quantized = tfc.quantize(model, calibration_data=images)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite")
    assert "MINIMUM" not in report.ops
    assert report.agreement >= 0.99
    # A power of two reaches beyond the ceiling, so it may not be left out.
    scheme = tfc.Scheme(activations=tfc.ActivationScheme(power_of_two=True))
    model = keras.Model(inputs, layers.ReLU(0.2)(layers.Conv2D(4, 3)(inputs)))
    quantized = tfc.quantize(model, scheme, calibration_data=images)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite")
    assert "MINIMUM" in report.ops
    assert report.agreement == 1.0
    assert not report.float_tensors
