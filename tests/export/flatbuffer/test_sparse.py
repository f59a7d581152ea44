"""Sparse encoding: where LiteRT can run it, and a refusal that says why elsewhere."""

import types

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.flatbuffer.sparse import encode_sparse
from tfcompress.pruning import Block, ConstantSparsity, Pruner


def pruned(model, pattern, sparsity=0.8):
    pruner = Pruner(model, ConstantSparsity(sparsity, begin_step=0, end_step=0), pattern=pattern)
    pruner.update(0)
    return model


def dense_model():
    inputs = keras.Input((64,), name="features")
    x = layers.Dense(96, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, layers.Dense(32, name="scores")(x))


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)


def test_blocks_of_dense_layers_leave_the_file_and_it_still_computes_the_same(data, tmp_path):
    model = tfc.quantize(pruned(dense_model(), Block(16, 1)), calibration_data=data)
    whole = tfc.export_tflite(model, tmp_path / "whole.tflite")
    sparse = tfc.export_tflite(model, tmp_path / "sparse.tflite", sparse_encoding=True)
    assert sparse.sparse_layers == ("hidden", "scores")
    assert sparse.num_bytes < whole.num_bytes - 0.6 * (64 * 96 + 96 * 32)
    (parity,) = sparse.parity["serving_default"]
    assert parity.distinct >= 64
    # Not XNNPACK's kernel but an older one with integer multipliers.
    assert parity.equal >= 0.99
    assert parity.within_one == 1.0
    tensors = inspect_tflite((tmp_path / "sparse.tflite").read_bytes()).tensors
    kernels = {t.shape: t for t in tensors if t.is_constant and len(t.shape) == 2}
    assert kernels[96, 64].sparsity == pytest.approx(0.8, abs=0.01)
    assert kernels[96, 64].num_bytes < 0.3 * 96 * 64
    assert "Without their zeros in the file: hidden, scores" in str(sparse)


def test_single_zeros_stay_dense_beside_blocks(data, tmp_path):
    model = dense_model()
    kernel = model.get_layer("scores").kernel
    kernel.assign(kernel * np.random.default_rng(0).integers(0, 2, kernel.shape))
    first = keras.Model(model.input, model.get_layer("hidden").output)
    pruned(first, Block(16, 1))
    model = tfc.quantize(model, calibration_data=data)
    report = tfc.export_tflite(model, tmp_path / "model.tflite", sparse_encoding=True)
    assert report.sparse_layers == ("hidden",)
    assert report.agreement >= 0.99


def baked(codes, keras_class="Dense", num_bits=8):
    return types.SimpleNamespace(
        layer="a", codes=np.int8(codes), keras_class=keras_class, num_bits=num_bits
    )


CHECKERED = np.indices((64, 32)).sum(0) % 2
HALF = np.repeat([0, 1], 32)[:, None] * np.ones((64, 32))


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (baked(CHECKERED), "'a': too few of its zeros come in blocks of 16"),
        (baked(np.ones((64, 32))), "without zero weights"),
        (baked(HALF.reshape(1, 1, 64, 32), "Conv2D"), "no sparse int8 kernel for Conv2D"),
        (baked(HALF[12:52]), "40 inputs are no multiple of 16"),
        (baked(HALF, num_bits=4), "4 bits"),
    ],
    ids=["single zeros", "no zeros", "convolution", "inputs", "bits"],
)
def test_what_cannot_be_left_out_is_refused_with_the_reason(kernel, reason):
    with pytest.raises(ValueError, match=reason):
        encode_sparse(b"", [kernel])


def test_a_refusal_leaves_no_file(tmp_path):
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, layers.Conv2D(16, 3)(inputs))
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype(np.float32)
    quantized = tfc.quantize(pruned(model, "unstructured"), calibration_data=data)
    with pytest.raises(ValueError, match="no sparse int8 kernel for Conv2D"):
        tfc.export_tflite(quantized, tmp_path / "model.tflite", sparse_encoding=True)
    assert not list(tmp_path.iterdir())


def test_a_float_file_leaves_single_zeros_out(data, tmp_path):
    model = pruned(dense_model(), "unstructured", 0.9)
    whole = tfc.export_tflite(model, tmp_path / "a.tflite", allow_float=True)
    options = {"allow_float": True, "sparse_encoding": True, "verify_data": data}
    sparse = tfc.export_tflite(model, tmp_path / "b.tflite", **options)
    assert sparse.num_bytes < 0.5 * whole.num_bytes
    assert sparse.agreement == 1.0
    assert sparse.sparse_layers == ("hidden", "scores")
    for report in (whole, sparse):
        rows = {layer.name: (layer.num_bits, layer.pruned) for layer in report.layers}
        assert rows == {"hidden": (32, round(0.9 * 64 * 96)), "scores": (32, round(0.9 * 96 * 32))}
        assert report.dense_num_bytes == whole.num_bytes
        assert report.dense_gzip_bytes > whole.gzip_bytes + 3 * (64 * 96 + 96 * 32)
    assert f"{whole.num_bytes:,}" in str(sparse)


def test_a_float_convolution_leaves_its_zeros_out(tmp_path):
    inputs = keras.Input((8, 8, 16))
    x = layers.Conv2D(32, 3, name="conv")(inputs)
    model = keras.Model(inputs, layers.DepthwiseConv2D(3, name="depthwise")(x))
    first = keras.Model(inputs, x)
    pruned(first, "unstructured", 0.9)
    options = {"allow_float": True, "sparse_encoding": True}
    report = tfc.export_tflite(model, tmp_path / "a.tflite", **options)
    assert report.sparse_layers == ("conv",)
    dense = keras.models.clone_model(model)
    with pytest.raises(ValueError, match=r"kernels of mostly zeros.*'conv': '0%'"):
        tfc.export_tflite(dense, tmp_path / "b.tflite", **options)


def test_the_zeros_of_four_bits_count_too(data, tmp_path):
    config = tfc.QuantizationConfig("w4a8")
    model = tfc.quantize(pruned(dense_model(), "unstructured"), config, calibration_data=data)
    report = tfc.export_tflite(model, tmp_path / "a.tflite")
    assert report.dense_gzip_bytes > report.gzip_bytes + 0.1 * (64 * 96 + 96 * 32)
