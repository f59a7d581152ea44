"""Sums and products of two tensors, on the integers that the runtime computes with."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfcompress as tfc
from tfcompress.quantization import FakeQuantize
from tfcompress.quantization.operators.arithmetic import QuantizedAdd
from tfcompress.quantization.operators.runtime_arithmetic import factor_scale, runtime_sum


def xnnpack_sum(codes, scales, scale):
    """The reference, in Python's integers."""
    ratios = [np.float32(s) / np.float32(scale) for s in scales]
    shift = 20 - int(np.floor(np.log2(max(ratios))))
    multipliers = [round(float(r) * 2**shift) for r in ratios]
    total = sum(int(q) * m for q, m in zip(codes, multipliers, strict=True))
    return (total + 2 ** (shift - 1)) >> shift


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(-255, 255), st.integers(-255, 255)),
    st.tuples(st.floats(0.002, 200.0), st.floats(0.002, 200.0)),
    st.sampled_from([1.0, 0.75, 0.3337]),
)
def test_sums_are_those_of_the_runtime(codes, scales, scale):
    tensors = [tf.constant([c], tf.float32) for c in codes]
    ours = runtime_sum(tensors, [tf.constant(s, tf.float32) for s in scales], tf.constant(scale))
    assert int(ours[0]) == xnnpack_sum(codes, scales, scale)


def test_halves_go_up():
    codes = tf.constant([-3.0, -1.0, 1.0, 3.0])
    scales = [tf.constant(0.5), tf.constant(0.25)]
    np.testing.assert_array_equal(runtime_sum([codes, 0 * codes], scales, 1.0), [-1, 0, 1, 2])


@pytest.mark.parametrize("value", [0.5, -0.25, 0.75, 1 / 3, 1 / 6])
def test_a_product_with_a_number_lies_between_no_two_codes(value):
    """Whether halves go to even, as on x86, or up, as on ARM: the codes are the same."""
    codes = np.arange(-255, 256)
    scale = factor_scale(value)
    total = codes * round(value / float(scale))
    for exponent in range(-3, 4):
        even = np.rint(total.astype(np.float32) * np.float32(scale * 2.0**exponent))
        exact = total * (float(scale) * 2.0**exponent)
        np.testing.assert_array_equal(even, np.floor(exact + 0.5))
        np.testing.assert_array_equal(even, -np.floor(0.5 - exact))
        np.testing.assert_allclose(even, codes * value * 2.0**exponent, atol=0.5 + 1e-3)


MERGES = {
    "add": lambda x: layers.Add(name="merge")(x),
    "subtract": lambda x: layers.Subtract(name="merge")(x),
    "multiply": lambda x: layers.Multiply(name="merge")(x),
    "ops": lambda x: x[0] + x[1],
}


@pytest.mark.filterwarnings("ignore:The ranges of merge")
@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
def test_halves_end_where_the_runtime_puts_them(merge, tmp_path):
    # Ranges such that every second sum lies half way between two codes.
    inputs = [keras.Input((256,), name=name) for name in ("left", "right")]
    model = keras.Model(inputs, merge(inputs))
    random = np.random.default_rng(0)
    data = [random.integers(-128, 128, (200, 256)).astype(np.float32) for _ in inputs]
    for values in data:
        values[0, :2] = -128.0, 127.0
    quantized = tfc.quantize(model, calibration_data=data)
    output = [q for q in quantized.layers if isinstance(q, FakeQuantize)][-1]
    factor = 64.0 if merge is MERGES["multiply"] else 2.0
    output.set_range(-128.0 * factor, 127.0 * factor)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=data)
    (parity,) = report.parity["serving_default"]
    assert parity.distinct > 100
    assert parity.equal == 1.0
    assert report.fully_delegated


def test_an_inner_range_that_is_not_known_leaves_the_sum_alone():
    inputs = [keras.Input((4,), name=name) for name in ("left", "right")]
    model = tfc.quantize(keras.Model(inputs, layers.Add()(inputs)))
    values = [np.full((1, 4), 0.3, np.float32), np.full((1, 4), 0.4, np.float32)]
    np.testing.assert_array_equal(model(values), values[0] + values[1])


def test_it_stands_where_both_inputs_are_quantized_and_is_stripped_to_keras_own(tmp_path):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(2, 1, name="conv")(inputs)
    model = keras.Model(inputs, layers.Add(name="add")([x, inputs]))
    data = np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype(np.float32)
    quantized = tfc.quantize(model, calibration_data=data)
    assert type(quantized.get_layer("add")) is QuantizedAdd
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(data), quantized(data))
    assert type(tfc.strip(quantized).get_layer("add")) is layers.Add


def test_gradients_pass_in_inference_as_through_the_real_sum():
    inputs = [keras.Input((4,), name=name) for name in ("left", "right")]
    data = [np.random.default_rng(i).uniform(-1, 1, (8, 4)).astype(np.float32) for i in (0, 1)]
    model = tfc.quantize(keras.Model(inputs, layers.Add()(inputs)), calibration_data=data)
    tensors = [tf.constant(0.5 * values) for values in data]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        total = tf.reduce_sum(model(tensors, training=False))
    for gradient in tape.gradient(total, tensors):
        np.testing.assert_array_equal(gradient, np.ones((8, 4)))


def test_numbers_beside_a_tensor_of_the_same_range_round_as_in_the_file(tmp_path, converter):
    """A choice shares one range, so that a third of the products lie exactly between two codes."""
    data = np.random.default_rng(0).normal(size=(64, 8, 4)).astype(np.float32)
    inputs = keras.Input((8, 4), name="x")
    chosen = keras.ops.where(inputs > 0.3, inputs, 0.5 * inputs)
    other = keras.ops.where(inputs > 0.3, inputs, inputs - 0.25)
    model = keras.Model(inputs, {"product": chosen, "difference": other})
    quantized = tfc.quantize(model, calibration_data=data)
    path = tmp_path / "m.tflite"
    assert tfc.export_tflite(quantized, path, verify_data=data).agreement == 1.0
    found, wanted = tfc.Runner(path).predict(data), quantized(data)
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)
