"""Float files with float16 weights, and with int8 weights and float activations."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfcompress as tfc

IMAGES = np.random.default_rng(0).normal(0, 1, (16, 8, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 8), name="image"),
            layers.Conv2D(32, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ]
    )
    model.get_layer("bn").gamma.assign(np.linspace(-1, 2, 32))
    return model


@pytest.mark.parametrize(("weights", "stored"), [("float16", "float16"), ("dynamic", "int8")])
def test_the_file_holds_smaller_weights(model, weights, stored, tmp_path, converter):
    path = tmp_path / "m.tflite"
    report = tfc.export_tflite(model, path, calibration_data=IMAGES, weights=weights)
    kernels = {row.name: row.stored for row in report.layers}
    # The converter leaves kernels below 1024 weights in float32, in "dynamic".
    assert kernels["conv"] == kernels["logits"] == stored
    assert kernels["depthwise"] == ("float16" if weights == "float16" else "float32")
    assert {row.name: row.num_bits for row in report.layers}["conv"] == np.dtype(
        stored
    ).itemsize * 8
    assert report.num_bytes < report.float_num_bytes * (0.65 if weights == "float16" else 0.5)
    assert report.verified_on == {"serving_default": "calibration data"}
    found = next(iter(tfc.Runner(path).predict(IMAGES).values()))
    wanted = model.predict(IMAGES, verbose=0)
    limit = 1e-3 if weights == "float16" else 3e-2
    assert 0 < np.abs(found - wanted).max() < limit * np.abs(wanted).max()


def test_what_it_is_not_for_is_refused(model, tmp_path):
    quantized = tfc.quantize(model, calibration_data=IMAGES)
    with pytest.raises(ValueError, match=r"quantized.*strip"):
        tfc.export_tflite(quantized, tmp_path / "m.tflite", weights="float16")
    with pytest.raises(ValueError, match=r"'float16', 'dynamic'.*weights='int4'"):
        tfc.export_tflite(model, tmp_path / "m.tflite", weights="int4")
    with pytest.raises(ValueError, match="sparse_encoding"):
        tfc.export_tflite(model, tmp_path / "m.tflite", weights="dynamic", sparse_encoding=True)
    with pytest.raises(ValueError, match="pointwise_as_dense with a quantized model"):
        tfc.export_tflite(model, tmp_path / "m.tflite", weights="float16", pointwise_as_dense=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1e5, 1e-6, 1e-9])
def test_weights_that_float16_does_not_hold_are_refused(size, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4,), name="x"),
            layers.Dense(64, use_bias=False, name="first"),
            layers.Dense(2, name="logits"),
        ]
    )
    first, last = (layer.kernel for layer in model.layers)
    first.assign(np.sign(first) * size)
    last.assign(last / size * 1e-3)
    with pytest.raises(ValueError, match=r"float16 holds.*first.*weights='dynamic'"):
        tfc.export_tflite(model, tmp_path / "m.tflite", weights="float16", verify_samples=0)
    assert not list(tmp_path.iterdir())


def test_a_folded_batch_norm_may_make_weights_too_large(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2), name="image"),
            layers.Conv2D(4, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(epsilon=1e-12, name="bn"),
            layers.Flatten(),
            layers.Dense(2, name="logits"),
        ]
    )
    model.get_layer("bn").moving_variance.assign(np.full(4, 1e-13))
    with pytest.raises(ValueError, match=r"float16 holds.*65504"):
        tfc.export_tflite(model, tmp_path / "m.tflite", weights="float16", verify_samples=0)


def test_kernels_of_zeros_are_no_problem(tmp_path):
    """A residual branch that begins at zero, by its kernel or by its batch norm."""
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.BatchNormalization(gamma_initializer="zeros", name="bn")(x)
    y = layers.Conv2D(4, 3, padding="same", kernel_initializer="zeros", name="second")(inputs)
    model = keras.Model(inputs, layers.Add()([x, y, inputs]))
    report = tfc.export_tflite(model, tmp_path / "m.tflite", weights="float16")
    assert {row.stored for row in report.layers} == {"float16"}


@pytest.mark.parametrize(("weights", "stored"), [("float16", "float16"), ("dynamic", "int8")])
def test_rows_of_embeddings_and_attention_are_those_of_the_file(weights, stored, tmp_path):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    x = layers.Embedding(64, 32, name="embedding")(tokens)
    x = layers.MultiHeadAttention(2, 16, name="attention")(x, x)
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(tokens, layers.Dense(40, name="logits")(x))
    data = np.random.default_rng(0).integers(0, 64, (8, 12)).astype(np.int32)
    path = tmp_path / "m.tflite"
    report = tfc.export_tflite(model, path, weights=weights, verify_data=data)
    assert len(report.layers) == 6
    assert {row.stored for row in report.layers} == {stored}
    interpreter = Interpreter(str(path))
    held = {
        tuple(int(n) for n in t["shape"]): t
        for t in interpreter.get_tensor_details()
        if t["dtype"] == np.dtype(stored).type and len(t["shape"]) == 2
    }
    assert (64, 32) in held
    row = next(row for row in report.layers if row.name == "embedding")
    scales = held[64, 32]["quantization_parameters"]["scales"]
    assert row.num_bits == 8 * np.dtype(stored).itemsize
    assert row.num_scales == len(np.unique(scales))
    if weights == "dynamic":
        assert row.smallest_scale == pytest.approx(scales.min())
        assert row.largest_scale == pytest.approx(scales.max())
        assert row.distinct <= 255
