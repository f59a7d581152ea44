"""Kernels of one input or one output, of which the converter makes other operators."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc

DATA = np.random.default_rng(0).normal(size=(64, 6, 3)).astype(np.float32)


def one_input(**arguments):
    """A dense layer of one input without a bias: a product, to the converter."""
    return lambda x: layers.Dense(2, use_bias=False, **arguments)(x[..., :1])


CASES = {
    "dense of one input": one_input(),
    "with a relu": lambda x: layers.ReLU()(one_input()(x)),
    "with an activation": one_input(activation="relu"),
    "with a bias": lambda x: layers.Dense(2)(x[..., :1]),
    "with batch norm": lambda x: layers.BatchNormalization()(one_input()(x)),
    "one output": lambda x: layers.Dense(1)(x),
    "one input and output": lambda x: layers.Dense(1, use_bias=False)(x[..., :1]),
    "Conv1D of one filter": lambda x: layers.Conv1D(1, 3)(x),
    "and one tap": lambda x: layers.Conv1D(1, 1, activation="relu")(x),
    "same": lambda x: layers.Conv1D(1, 3, strides=2, padding="same")(x),
    "causal": lambda x: layers.Conv1D(1, 2, dilation_rate=2, padding="causal")(x),
    "and batch norm": lambda x: layers.ReLU()(
        layers.BatchNormalization()(layers.Conv1D(1, 3, use_bias=False)(x))
    ),
    "DepthwiseConv1D of one channel": lambda x: layers.DepthwiseConv1D(3)(x[..., :1]),
    "Conv1DTranspose of one filter": lambda x: layers.Conv1DTranspose(1, 3, strides=2)(x),
    "SeparableConv1D of one filter": lambda x: layers.SeparableConv1D(1, 3)(x),
    "Conv2D of one filter": lambda x: layers.Conv2D(1, 3)(x[..., None]),
    "minimum behind a kernel": lambda x: ops.minimum(layers.Conv1D(2, 3)(x), 0.3),
    "clip behind a kernel of one": lambda x: ops.clip(layers.Dense(1)(x), -0.2, 0.4),
}


@pytest.fixture(scope="module")
def files(converter, tmp_path_factory):
    """All cases as outputs of one model: Keras' outputs and the file's, by case."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(DATA.shape[1:], name="x")
    outputs = {f"case_{i}": case(inputs) for i, case in enumerate(CASES.values())}
    model = keras.Model(inputs, outputs)
    for variable in model.weights:
        if "bias" in variable.path or "beta" in variable.path:
            values = np.random.default_rng(1).normal(0, 0.3, variable.shape)
            variable.assign(values)
    quantized = tfc.quantize(model, calibration_data=DATA)
    path = tmp_path_factory.mktemp("single") / "m.tflite"
    report = tfc.export_tflite(quantized, path, verify_data=DATA)
    assert not report.float_tensors
    assert not report.unverified
    runner = tfc.Runner(path)
    steps = {name: info.scale for name, info in runner.outputs.items()}
    return quantized(DATA), runner.predict(DATA), steps


@pytest.mark.parametrize("name", CASES)
def test_the_file_gives_what_keras_gives(name, files):
    key = f"case_{list(CASES).index(name)}"
    wanted, found, steps = (part[key] for part in files)
    off = np.abs(np.asarray(wanted) - found) / steps
    assert np.mean(off < 0.5) >= 0.99
    assert off.max() < 1.5
    assert len(np.unique(found)) > 10
