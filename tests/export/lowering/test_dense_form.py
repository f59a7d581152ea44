"""Convolutions as dense layers: packed in the file, with the codes that were trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.export.lowering.dense_form import as_dense

IMAGES = np.random.default_rng(0).normal(0, 1, (32, 6, 6, 8)).astype(np.float32)
PACKED = ("normed", "relu", "separable", "sequence")
KEPT = ("strided", "wide", "odd")


def float_model():
    """Pointwise convolutions with a batch norm, a fused ReLU, in a sequence, and others."""
    random = np.random.default_rng(1)
    image = keras.Input((6, 6, 8), name="image")
    x = layers.Conv2D(12, 1, use_bias=False, name="normed")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(16, 1, activation="relu", name="relu")(x)
    strided = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 1, strides=2, name="strided")(x))
    x = layers.SeparableConv2D(7, 3, name="separable")(x)
    x = layers.Conv2D(8, 1, name="odd")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="wide")(x))
    steps = layers.Conv1D(8, 1, name="sequence")(layers.Reshape((12, 24))(image))
    steps = layers.GlobalAveragePooling1D()(steps)
    model = keras.Model(image, [layers.Concatenate()([x, strided]), steps])
    norm = model.get_layer("bn")
    # Some of its factors are negative, which turns the signs of codes.
    norm.gamma.assign(random.uniform(-1, 2, 12))
    norm.beta.assign(random.normal(size=12))
    norm.moving_mean.assign(random.normal(size=12))
    return model


@pytest.mark.parametrize(("preset", "stored"), [("int4", "int4"), ("w2a8", "int2")])
def test_the_codes_are_those_of_the_convolutions(preset, stored, tmp_path, converter):
    quantized = tfc.quantize(float_model(), preset, calibration_data=IMAGES)
    said = {entry.name: entry.stored for entry in quantized.plan if entry.stored}
    by_choice = f"int8; {stored} with pointwise_as_dense"
    assert said == {
        **dict.fromkeys(("normed", "relu", "sequence"), (by_choice,)),
        "separable": ("int8", by_choice),
        **dict.fromkeys(KEPT, ("int8",)),
    }
    assert "in the file" in str(quantized.plan)
    found, reports = {}, {}
    for is_dense in (False, True):
        path = tmp_path / f"{is_dense}.tflite"
        reports[is_dense] = tfc.export_tflite(
            quantized, path, verify_data=IMAGES, pointwise_as_dense=is_dense
        )
        found[is_dense] = tfc.Runner(path).run_codes(IMAGES)
    for name, codes in found[False].items():
        assert len(np.unique(codes)) > 50
        np.testing.assert_array_equal(found[True][name], codes)
    report = reports[True]
    assert report.agreement == 1.0
    assert not report.unverified
    assert report.fully_delegated
    types = {row.name: row.stored for row in report.layers}
    assert {types[name] for name in KEPT} == {"int8"}
    # Rows of whole bytes: two bits take multiples of four inputs.
    assert {name: types[name] for name in PACKED} == dict.fromkeys(PACKED, stored)
    assert {row.stored for row in reports[False].layers} == {"int8"}
    weights = sum(r.num_weights for r in report.layers if r.name in PACKED)
    bits = {"int4": 4, "int2": 2}[stored]
    saved = reports[False].constant_num_bytes - report.constant_num_bytes
    # Reshapes have small constants of their own.
    assert abs(saved - weights * (8 - bits) / 8) < 200


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("size", "strides", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (1, 1)),
        ((1, 1), (2, 2), (1, 1)),
        ((5, 2), (1, 3), (1, 1)),
        ((2, 5), (3, 2), (1, 1)),
        ((1, 4), (1, 1), (1, 1)),
        ((2, 2), (4, 4), (1, 1)),
        ((3, 2), (1, 1), (2, 3)),
    ],
)
def test_patches_hold_what_each_output_reads(padding, size, strides, dilation):
    random = np.random.default_rng(0)
    layer = layers.Conv2D(3, size, strides, padding, dilation_rate=dilation, use_bias=False)
    for shape in ((9, 11), (8, 12), (10, 9)):
        x = random.integers(-8, 8, (2, *shape, 2)).astype(np.float32)
        layer(x)
        kernel = random.integers(-8, 8, layer.kernel.shape).astype(np.float32)
        layer.kernel.assign(kernel)
        expected = np.asarray(layer(x))
        # Sums of whole numbers are exact in any order.
        found = np.asarray(as_dense(layer, tf.constant(x), kernel, None))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("padding", ["same", "valid", "causal"])
@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(3, 1, 1), (4, 2, 1), (3, 1, 2), (1, 3, 1)]
)
def test_patches_of_a_sequence(padding, size, stride, dilation):
    random = np.random.default_rng(0)
    layer = layers.Conv1D(3, size, stride, padding, dilation_rate=dilation, activation="relu")
    for steps in (9, 12):
        x = random.integers(-8, 8, (2, steps, 2)).astype(np.float32)
        layer(x)
        kernel = random.integers(-8, 8, layer.kernel.shape).astype(np.float32)
        layer.kernel.assign(kernel)
        layer.bias.assign([1, -2, 3])
        found = np.asarray(as_dense(layer, tf.constant(x), kernel, np.float32([1, -2, 3])))
        np.testing.assert_array_equal(found, np.asarray(layer(x)))


def net_of_large_kernels():
    """Convolutions that are worth packing, with strides, dilation, a batch norm and a branch."""
    keras.utils.set_random_seed(0)
    image = keras.Input((9, 11, 8), name="image")
    x = layers.Conv2D(64, 3, padding="same", use_bias=False, name="same")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    y = layers.Conv2D(64, 3, strides=2, padding="same", activation="relu6", name="strided")(x)
    shortcut = layers.Conv2D(64, 1, strides=2, name="shortcut")(x)
    y = layers.ReLU()(layers.Add()([y, shortcut]))
    z = layers.Conv2D(48, (2, 3), dilation_rate=(1, 2), padding="same", name="dilated")(y)
    grouped = layers.Conv2D(48, 3, groups=4, name="grouped")(z)
    small = layers.Conv2D(4, 3, name="small")(grouped)
    steps = layers.Reshape((30, 48))(z)
    steps = layers.Conv1D(64, 4, padding="causal", name="causal")(steps)
    model = keras.Model(
        image, [layers.Flatten()(small), layers.GlobalAveragePooling1D()(steps)], name="large"
    )
    random = np.random.default_rng(1)
    norm = model.get_layer("bn")
    norm.gamma.assign(random.uniform(-1, 2, 64))
    norm.moving_mean.assign(random.normal(size=64))
    return model


LARGE = ("same", "strided", "shortcut", "dilated", "causal")


@pytest.mark.parametrize("bits", [4, 2])
def test_packed_convolutions_give_the_codes_of_the_others(bits, tmp_path, converter):
    images = np.random.default_rng(0).normal(0, 1, (24, 9, 11, 8)).astype(np.float32)
    reports, codes = {}, {}
    for name in (f"int{bits}", f"int{bits}-packed"):
        quantized = tfc.quantize(net_of_large_kernels(), name, calibration_data=images)
        said = {entry.name: entry.stored for entry in quantized.plan if entry.stored}
        stored = f"int{bits}" if "packed" in name else f"int8; int{bits} with packed=True"
        assert {said[layer] for layer in LARGE} == {(stored,)}
        assert {said[layer] for layer in ("grouped", "small")} == {("int8",)}
        path = tmp_path / f"{name}.tflite"
        reports[name] = tfc.export_tflite(quantized, path, verify_data=images)
        codes[name] = tfc.Runner(path).run_codes(images)
    plain, packed = reports.values()
    assert packed.agreement == 1.0
    assert packed.fully_delegated
    assert not packed.unverified
    types = {row.name: row.stored for row in packed.layers}
    assert {types[name] for name in LARGE} == {f"int{bits}"}
    assert packed.num_bytes < plain.num_bytes
    for one, other in zip(*(found.values() for found in codes.values()), strict=True):
        assert len(np.unique(one)) > 50
        np.testing.assert_array_equal(one, other)
    # By more than all operators of patches take.
    saved = sum(row.num_weights for row in packed.layers if row.name in LARGE) * (8 - bits) / 8
    assert plain.num_bytes - packed.num_bytes > 0.7 * saved


def test_packing_is_kept_in_a_saved_model(tmp_path, converter):
    images = np.random.default_rng(0).normal(0, 1, (8, 9, 11, 8)).astype(np.float32)
    quantized = tfc.quantize(net_of_large_kernels(), "int4-packed", calibration_data=images)
    quantized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    files = []
    for name, model in (("one", quantized), ("two", loaded)):
        tfc.export_tflite(model, tmp_path / f"{name}.tflite", verify_samples=0)
        files.append((tmp_path / f"{name}.tflite").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_bits": 8}, "8 bits"), ({"num_bits": 5}, "5 bits")],
)
def test_packed_needs_few_bits(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfc.WeightScheme(**arguments, packed=True)
    with pytest.raises(TypeError, match="packed"):
        tfc.WeightScheme(4, packed="yes")


def test_large_kernels_and_several_signatures(tmp_path, converter):
    """More rows than XNNPACK joins at once, and operators of each signature that cost bytes."""
    image = keras.Input((None, None, 8), name="image")
    model = keras.Model(image, layers.Conv2D(64, (13, 6), name="tall")(image))
    data = np.random.default_rng(0).normal(size=(8, 16, 12, 8)).astype(np.float32)
    quantized = tfc.quantize(model, "int4-packed", calibration_data=data)
    one = {"serving_default": (16, 12, 8)}
    report = tfc.export_tflite(
        quantized, tmp_path / "one.tflite", verify_data={"serving_default": data}, input_shapes=one
    )
    assert report.agreement == 1.0
    assert report.fully_delegated
    assert [row.stored for row in report.layers] == ["int4"]
    image = keras.Input((None, None, 32), name="image")
    model = keras.Model(image, layers.Conv2D(32, 3, name="one")(image))
    data = np.random.default_rng(0).normal(size=(8, 9, 9, 32)).astype(np.float32)
    shapes = {f"of_{size}": (size, size, 32) for size in (6, 7, 8, 9)}
    sizes = [
        tfc.export_tflite(
            tfc.quantize(model, preset, calibration_data=data),
            tmp_path / "several.tflite",
            verify_samples=0,
            input_shapes=shapes,
        ).num_bytes
        for preset in ("int4", "int4-packed")
    ]
    assert sizes[1] <= sizes[0]


def test_a_layer_that_is_called_often_stays_in_int8(tmp_path, converter):
    image = keras.Input((9, 9, 32), name="image")
    layer, x = layers.Conv2D(32, 3, padding="same", name="shared"), image
    for _ in range(6):
        x = layer(x)
    data = np.random.default_rng(0).normal(size=(8, 9, 9, 32)).astype(np.float32)
    quantized = tfc.quantize(keras.Model(image, x), "int4-packed", calibration_data=data)
    assert {kind for entry in quantized.plan for kind in entry.stored} == {"int8"}
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=data)
    assert {row.stored for row in report.layers} == {"int8"}
