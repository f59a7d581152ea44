"""The known defects of tensorflow-model-optimization 0.8.1, each as a test that ours has none."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.export.flatbuffer.inspect import inspect_tflite


def compiled(model):
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model


@pytest.fixture(scope="module")
def images(digits):
    return digits[0][0][:200]


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory):
    """`(quantized model, report, summary of the file)` of a net of what tfmot leaves in float."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="silu", name="swish")(image)
    x = layers.Conv2D(8, 3, padding="same", dilation_rate=2, name="dilated")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2DTranspose(4, 2, 2, name="transposed")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="transposed_norm")(x))
    x = layers.Dense(16, name="dense")(layers.GlobalAveragePooling2D()(x))
    x = layers.ReLU()(layers.BatchNormalization(name="dense_norm")(x))
    model = keras.Model(image, layers.Dense(4, name="logits")(x))
    # Channels of very different size.
    depthwise = model.get_layer("depthwise").kernel
    depthwise.assign(depthwise * np.float32(2.0) ** np.arange(-4, 4)[:, None])
    config = tfc.QuantizationConfig(by_name={"logits": "w4a8"})
    quantized = compiled(tfc.quantize(model, config, calibration_data=images))
    quantized.fit(images, np.ones((200, 4)), epochs=1, verbose=0)
    folder = tmp_path_factory.mktemp("defects")
    quantized.save(folder / "model.keras")
    quantized = keras.models.load_model(folder / "model.keras")
    report = tfc.export_tflite(quantized, folder / "model.tflite", verify_data=images)
    return quantized, report, inspect_tflite(folder / "model.tflite")


def test_no_kernel_is_left_in_float(exported):
    _, report, summary = exported
    assert not report.float_tensors
    kernels = [t for t in summary.tensors if t.is_constant and len(t.shape) in (2, 4)]
    assert {t.dtype for t in kernels} <= {"int8", "int4"}
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"} <= set(report.ops)


def test_a_depthwise_kernel_has_a_range_per_channel(exported):
    _, _, summary = exported
    (op,) = [
        op
        for op in summary.ops
        if op.name == "DEPTHWISE_CONV_2D" and len(set(summary.tensors[op.inputs[1]].scales)) == 8
    ]
    scales = summary.tensors[op.inputs[1]].scales
    assert max(scales) > 20 * min(scales)


def test_four_bit_weights_are_stored_in_four_bits(exported):
    _, _, summary = exported
    (logits,) = [t for t in summary.tensors if t.dtype == "int4"]
    assert logits.shape == (4, 16)
    assert logits.num_bytes == 32


def test_a_quantized_model_comes_back_from_its_file(exported, images):
    # The fixture exports the loaded model; its figures are those of the file that LiteRT runs.
    _, report, _ = exported
    (parity,) = report.parity["serving_default"]
    assert parity.samples == 200
    assert parity.equal >= 0.99


def test_ranges_begin_with_the_data_and_not_at_six(images):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(4, name="d")])
    quantized = compiled(tfc.quantize(model))
    quantized.fit(images * 0.52, np.ones((200, 4)), batch_size=200, verbose=0)
    low, high = quantized.layers[1].range
    assert 0.5 < high < 0.53
    assert -0.01 < low <= 0.0
    outputs = model(images * 0.52).numpy()
    low, high = quantized.get_layer("d_quantizer").range
    np.testing.assert_allclose([low, high], [outputs.min(), outputs.max()], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("pattern", ["unstructured", tfc.NOfM(2, 4)])
def test_a_pruned_model_keeps_its_zeros_through_quantized_training_clone_and_file(
    pattern, images, tmp_path
):
    model = compiled(
        keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(8, name="dense")])
    )
    targets = np.ones((200, 8))
    callback = tfc.callbacks.Pruning(tfc.ConstantSparsity(0.5), pattern=pattern, verbose=0)
    model.fit(images, targets, epochs=1, verbose=0, callbacks=[callback])
    zeros = model.get_layer("dense").kernel.numpy() == 0
    assert zeros.mean() == 0.5
    quantized = tfc.quantize(model, calibration_data=images)
    clone = keras.models.clone_model(quantized)
    clone.set_weights(quantized.get_weights())
    compiled(clone).fit(images, targets, epochs=2, verbose=0)
    kernel = np.asarray(clone.get_layer("dense").effective_weights()["kernel"])
    assert not kernel[zeros].any()
    report = tfc.export_tflite(clone, tmp_path / "model.tflite", verify_data=images)
    assert report.parity["serving_default"][0].equal >= 0.99
    summary = inspect_tflite(tmp_path / "model.tflite")
    (stored,) = [t for t in summary.tensors if t.is_constant and t.shape == (8, 64)]
    assert stored.sparsity >= 0.5
    (layer,) = report.layers
    assert layer.pruned == zeros.sum()
    assert layer.pruned + layer.rounded_to_zero == stored.size - stored.non_zeros
    assert report.dense_gzip_bytes > report.gzip_bytes + 100
