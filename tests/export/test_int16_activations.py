"""16-bit activations with int8 weights: the file gives the codes that were trained."""

import re

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from keras import layers

import tfcompress as tfc

IMAGES = np.random.default_rng(0).normal(0.3, 1, (32, 10, 10, 3)).astype(np.float32)
SLOW = "outside XNNPACK"


def batch_norm(x):
    make = keras.initializers.RandomUniform
    return layers.BatchNormalization(
        beta_initializer=make(-1, 1, seed=1),
        # A negative factor turns the signs of its channel's codes.
        gamma_initializer=make(-1, 2, seed=2),
        moving_mean_initializer=make(-0.3, 0.3, seed=3),
        moving_variance_initializer=make(0.2, 2, seed=4),
    )(x)


def float_model():
    """Every operator that has a 16-bit form."""
    bias = {"bias_initializer": keras.initializers.RandomNormal(0, 0.3, seed=5)}
    image = keras.Input((10, 10, 3), name="image")
    x = layers.Rescaling(0.5, -0.1)(image)
    left = layers.ReLU(6.0)(batch_norm(layers.Conv2D(8, 3, padding="same", use_bias=False)(x)))
    right = batch_norm(layers.DepthwiseConv2D(3, padding="same", **bias)(left))
    right = layers.Conv2D(8, 1, activation="relu", name="right", **bias)(layers.ReLU()(right))
    x = layers.ReLU()(layers.Add()([left, right]))
    pooled = layers.ReLU()(layers.AveragePooling2D(2)(right))
    x = layers.Concatenate()([layers.MaxPooling2D(2)(x), pooled])
    x = layers.ZeroPadding2D()(layers.Dropout(0.1)(x))
    dilated = layers.Conv2D(6, 3, dilation_rate=2, **bias)(x)
    x = batch_norm(layers.SeparableConv2D(12, 3, strides=2, padding="same")(x))
    rows = layers.Reshape((-1, 6))(layers.Cropping2D(1)(dilated))
    rows = layers.Conv1D(4, 3, padding="same", activation="relu", name="rows_conv", **bias)(rows)
    rows = layers.Cropping1D((0, 1))(layers.ZeroPadding1D(1)(rows))
    rows = layers.MaxPooling1D(2)(layers.DepthwiseConv1D(2, padding="same", **bias)(rows))
    columns = layers.GlobalMaxPooling1D()(layers.Permute((2, 1))(rows))
    means = layers.GlobalAveragePooling2D()(x)
    outputs = [
        layers.Dense(10, name="logits", **bias)(means),
        layers.Dense(1, name="number", **bias)(layers.GlobalMaxPooling2D()(x)),
        batch_norm(layers.Dense(5, use_bias=False)(layers.Flatten()(x))),
        layers.Dense(3, "relu6", name="rows", **bias)(rows),
        layers.Dense(2, name="columns", **bias)(columns),
    ]
    return keras.Model(image, outputs)


def test_the_file_computes_what_was_trained(tmp_path, converter):
    model = float_model()
    plan = tfc.plan(model, "w8a16")
    assert not plan.float_layers
    assert SLOW in str(plan)
    described = {entry.name: entry for entry in plan}
    assert described["logits"].activations.startswith("int16 symmetric")
    assert described["right"].parts == ("right", "right_activation")
    quantized = tfc.quantize(model, "int16x8", calibration_data=IMAGES)
    # Of 8-bit weights, what is off.
    for wanted, found in zip(model(IMAGES), quantized(IMAGES), strict=True):
        np.testing.assert_allclose(found, wanted, atol=0.05 * float(np.ptp(wanted)))
    quantized.compile(keras.optimizers.SGD(0.01), "mse")
    kernels = [v for v in quantized.trainable_variables if "kernel" in v.name]
    before = [kernel.numpy() for kernel in kernels]
    quantized.fit(IMAGES, [np.zeros(y.shape) for y in model(IMAGES)], batch_size=16, verbose=0)
    assert len(kernels) == 13
    for kernel, old in zip(kernels, before, strict=True):
        assert np.any(kernel.numpy() != old), kernel.path
    traced = quantized.predict(IMAGES, verbose=0)
    quantized.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    path = tmp_path / "m.tflite"
    report = tfc.export_tflite(loaded, path, verify_data=IMAGES)
    assert report.agreement == 1.0
    assert not report.float_tensors
    assert min(p.distinct for p in report.parity["serving_default"]) > 30
    assert SLOW in str(report)
    # Larger than what was calibrated: both ends of the ranges are reached.
    for inputs, wanted in ((IMAGES, traced), (4 * IMAGES, loaded(4 * IMAGES))):
        found = tfc.Runner(path).predict(inputs)
        for parity, values in zip(report.parity["serving_default"], wanted, strict=True):
            np.testing.assert_allclose(found[parity.output], values, atol=1e-6)

    file = flatbuffer_utils.read_model(str(path))
    types = {t.type for t in file.subgraphs[0].tensors if t.quantization.scale is not None}
    assert types == {schema.TensorType.INT16, schema.TensorType.INT8, schema.TensorType.INT64}
    versions = {entry.builtinCode: entry.version for entry in file.operatorCodes}
    assert versions[schema.BuiltinOperator.CONV_2D] == 8
    assert versions[schema.BuiltinOperator.FULLY_CONNECTED] == 11
    (runtime,) = [e.buffer for e in file.metadata if e.name == b"min_runtime_version"]
    assert bytes(file.buffers[runtime].data).startswith(b"2.15.0")
    kernels = {layer.stored for layer in report.layers}
    assert kernels == {"int8"}
    assert {layer.num_bits for layer in report.layers} == {8}


def test_what_has_no_16_bit_form_is_float_and_named(tmp_path, converter):
    image = keras.Input((10, 10, 3), name="image")
    x = layers.Conv2D(4, 3, activation="sigmoid", name="gate")(image)
    x = layers.Multiply(name="product")([x, layers.Conv2D(4, 3, name="values")(image)])
    x = layers.UpSampling2D(name="up")(x)
    x = layers.Activation("gelu", name="gelu")(layers.Conv2D(4, 3, name="conv")(x))
    x = layers.MaxPooling2D(1, 2, name="every")(
        layers.AveragePooling2D(3, 2, "same", name="border")(x)
    )
    x = layers.RepeatVector(2, name="repeat")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, layers.Dense(3, "softmax", name="classes")(x))
    floats = tfc.plan(model, "int16x8").float_layers
    assert set(floats) == {"gate", "product", "up", "gelu", "border", "every", "repeat", "classes"}
    assert all("16-bit activations" in reason for reason in floats.values())
    with pytest.warns(UserWarning, match="product.*export_tflite refuses"):
        quantized = tfc.quantize(model, "int16x8", calibration_data=IMAGES)
    with pytest.raises(ValueError, match="product"):
        tfc.export_tflite(quantized, tmp_path / "m.tflite")
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", allow_float=True, float_io=True)
    assert report.agreement >= 0.99
    assert report.ops["QUANTIZE"] >= 3
    assert report.ops["CONV_2D"] == 3
    values = tfc.Runner(tmp_path / "m.tflite").predict(IMAGES)["classes"]
    np.testing.assert_allclose(values, quantized(IMAGES), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tfc.ActivationScheme(16), "symmetric"),
        (lambda: tfc.ActivationScheme(16, symmetric=True, quantizer=tfc.LSQPlus()), "uniform"),
        (lambda: tfc.ActivationScheme(12, symmetric=True), "2 to 8, or 16"),
        (lambda: tfc.WeightScheme(16), "2 to 8. Received"),
        (
            lambda: tfc.Scheme(tfc.WeightScheme(4), tfc.ActivationScheme(16, symmetric=True)),
            "weights of 8 bits",
        ),
    ],
)
def test_other_schemes_of_16_bits_are_refused(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


def test_8_and_16_bits_in_one_model_are_refused():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="first"), layers.Dense(2, name="last")]
    )
    config = tfc.QuantizationConfig("int8", by_name={"last": "int16x8"})
    with pytest.raises(ValueError, match=r"in all layers or in none.*'last'.*'first'"):
        tfc.plan(model, config)
    config = tfc.QuantizationConfig("int16x8", by_name={"last": None})
    assert tfc.plan(model, config).float_layers == {"last": "the configuration says so"}
