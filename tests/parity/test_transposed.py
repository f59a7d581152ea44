"""Transposed convolutions: fused activations without a bias, and strides beyond the kernel."""

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from tests.parity.test_layers import stem

# Name → body from an image of 8×8×1.
CASES = {
    "relu_without_bias": lambda x: layers.Conv2DTranspose(
        6, 3, 2, "same", activation="relu", use_bias=False
    )(x),
    "relu6_without_bias": lambda x: layers.ReLU(6.0)(
        layers.Conv2DTranspose(6, 2, 2, use_bias=False)(x)
    ),
    # Their biases are zeros, as of every new model.
    "relu_of_zero_bias": lambda x: layers.ReLU()(layers.Conv2DTranspose(6, 3, 2, "same")(x)),
    "relu6_of_zero_bias": lambda x: layers.Conv2DTranspose(6, 2, 2, activation="relu6")(x),
    "stride_beyond_kernel": lambda x: layers.Conv2DTranspose(6, 1, 2, "same", activation="relu6")(
        x
    ),
    "stride_beyond_kernel_valid": lambda x: layers.Conv2DTranspose(
        6, (3, 1), (2, 3), activation="relu"
    )(x),
    "stride_beyond_kernel_linear": lambda x: layers.Conv2DTranspose(
        6, 2, 3, "same", bias_initializer="normal"
    )(x),
    "stride_beyond_kernel_output_padding": lambda x: layers.Conv2DTranspose(
        6, (2, 1), 3, "same", output_padding=1, activation="relu"
    )(x),
    "stride_beyond_kernel_batch_norm": lambda x: layers.ReLU(6.0)(
        layers.BatchNormalization(beta_initializer="normal")(
            layers.Conv2DTranspose(6, 1, 2, use_bias=False)(x)
        )
    ),
    "stride_beyond_kernel_of_steps": lambda x: layers.Conv1DTranspose(
        6, 1, 2, "same", activation="relu6", bias_initializer="normal"
    )(layers.Reshape((8, 64))(x)),
    "dilated": lambda x: layers.Conv2DTranspose(
        6, 3, dilation_rate=2, padding="same", activation="relu", bias_initializer="normal"
    )(x),
    "dilated_valid": lambda x: layers.Conv2DTranspose(6, (2, 4), dilation_rate=(3, 2))(x),
    "dilated_same_of_even_kernel": lambda x: layers.Conv2DTranspose(
        6, 4, dilation_rate=(2, 3), padding="same", activation="relu6"
    )(x),
    "dilated_batch_norm": lambda x: layers.BatchNormalization(beta_initializer="normal")(
        layers.Conv2DTranspose(6, 3, dilation_rate=2, use_bias=False)(x)
    ),
    "dilated_of_steps": lambda x: layers.Conv1DTranspose(
        6, 3, dilation_rate=2, padding="same", bias_initializer="normal"
    )(layers.Reshape((8, 64))(x)),
}


def test_the_file_computes_what_the_model_computes(images, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), name="image")
    x = stem(inputs)
    model = keras.Model(inputs, {name: body(x) for name, body in CASES.items()})
    assert not tfc.plan(model).float_layers
    quantized = tfc.quantize(model, calibration_data=images[:64], bias_correction=False)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=images)
    assert not report.float_tensors
    assert report.fully_delegated
    parities = report.parity["serving_default"]
    assert {p.output for p in parities} == set(CASES)
    wrong = [p for p in parities if p.equal < 0.99 or p.largest > 1 or p.distinct < 16]
    assert not wrong
    expected = model.predict(images, verbose=0)
    found = tfc.Runner(tmp_path / "model.tflite").predict(images)
    for name, values in expected.items():
        assert np.abs(found[name] - values).mean() < 0.02 * np.abs(values).max(), name
