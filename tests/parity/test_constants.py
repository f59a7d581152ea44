"""Constants that meet codes: those that change nothing, and those that no code is near."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc

SHAPE = (4, 6)


class Positions(layers.Layer):
    """Adds a value per position, zeros at the start."""

    def build(self, shape):
        self.positions = self.add_weight(shape=shape[1:], initializer="zeros")

    def call(self, x):
        return x + self.positions


def exported(outputs, inputs, path, scheme="int8", x=None):
    """The report of a file and the quantized model."""
    if x is None:
        x = np.random.default_rng(0).normal(size=(64, *SHAPE)).astype(np.float32)
    quantized = tfc.quantize(keras.Model(inputs, outputs), scheme, calibration_data=x)
    return tfc.export_tflite(quantized, path / "m.tflite", verify_data=x), quantized


def check_equal(report):
    assert not report.float_tensors
    found = {p.output: p.equal for p in report.parity["serving_default"]}
    assert found == dict.fromkeys(found, 1.0)


def test_constants_that_change_nothing(tmp_path):
    """The converter leaves these operations out; what is behind them rounds to a wider range."""
    ones, zeros = np.ones((1, *SHAPE), np.float32), np.zeros((1, *SHAPE), np.float32)
    calls = {
        "times": lambda x: x * 1.0,
        "divided": lambda x: x / 1.0,
        "plus": lambda x: 0.0 + x,
        "minus": lambda x: x - 0.0,
        "ones": lambda x: x * ones,
        "zeros": lambda x: x + zeros,
        "less": lambda x: x - zeros,
        "positions": Positions(),
        "rectified": lambda x: ops.relu(x * 1.0),
        "rectified_sum": lambda x: ops.relu(Positions()(x)),
    }
    inputs = keras.Input(SHAPE)
    outputs = {
        name: ops.where(inputs > 0, call(ops.sigmoid(inputs)), inputs * (1.1 + i / 7))
        for i, (name, call) in enumerate(calls.items())
    }
    check_equal(exported(outputs, inputs, tmp_path)[0])


def test_a_constant_array_may_widen_a_tensor(tmp_path):
    inputs = keras.Input((1, 6))
    x = np.random.default_rng(0).normal(size=(32, 1, 6)).astype(np.float32)
    model = keras.Model(inputs, layers.Dense(2)(inputs) + np.zeros((1, 4, 2), np.float32))
    assert model.output_shape == (None, 4, 2)
    quantized = tfc.quantize(model, calibration_data=x)
    assert quantized.output_shape == (None, 4, 2)


@pytest.mark.parametrize("scheme", ["int8", "w4a4"])
def test_a_clip_holds_values_at_both_ends(tmp_path, scheme):
    """With 16 codes the lower end is not that of int8."""
    inputs = keras.Input(SHAPE)
    outputs = {
        "both": ops.clip(inputs, -0.5, 1.0),
        "lower": ops.maximum(inputs, -0.2),
        "upper": ops.minimum(inputs, 0.2),
        "positive": ops.clip(inputs, 0.2, 1.0),
        "fused": ops.clip(layers.Dense(6)(inputs), -0.5, 1.0),
        "averaged": layers.AveragePooling1D(2)(ops.clip(inputs, -0.4, 1.0)),
    }
    check_equal(exported(outputs, inputs, tmp_path, scheme)[0])


@pytest.mark.parametrize("scheme", ["int8", "w4a4"])
def test_a_constant_beyond_a_prescribed_range_is_kept(tmp_path, scheme):
    """The outputs of sigmoid, tanh and softmax have no code for it."""
    inputs = keras.Input(SHAPE)
    causal = np.tril(np.ones(SHAPE, bool))
    outputs = {
        "chosen": ops.where(inputs > 0, ops.sigmoid(inputs), 2.5),
        "filled": ops.where(causal, ops.tanh(inputs), 4.0),
        "padded": ops.pad(ops.softmax(inputs), [[0, 0], [1, 1], [0, 0]], constant_values=-1.0),
        "resized": ops.pad(
            ops.concatenate([ops.sigmoid(inputs), ops.tanh(inputs)], 1),
            [[0, 0], [0, 1], [0, 0]],
            constant_values=3.0,
        ),
        "inside": ops.where(inputs > 0, ops.sigmoid(inputs), 0.5),
    }
    report, quantized = exported(outputs, inputs, tmp_path, scheme)
    check_equal(report)
    x = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    found = quantized.predict(x, verbose=0)
    step = {"int8": 1 / 50, "w4a4": 1 / 2}[scheme]
    for name, constant in {"chosen": 2.5, "filled": 4.0, "padded": -1.0, "resized": 3.0}.items():
        assert np.abs(found[name] - constant).min() < step


@pytest.mark.parametrize("mask", ["computed", "constant", "sum"])
def test_a_masked_score_of_a_prescribed_range_is_ignored(tmp_path, mask):
    """A softmax of scores in −1 … 1 gave masked ones a weight."""
    inputs = keras.Input(SHAPE)
    scores, causal = ops.tanh(inputs), np.tril(np.ones(SHAPE, bool))
    masked = {
        "computed": lambda: ops.where(inputs > 0, scores, -1e9),
        "constant": lambda: ops.where(causal, scores, -1e9),
        "sum": lambda: scores + np.where(causal, 0, -1e9).astype(np.float32),
    }[mask]()
    report, quantized = exported(ops.softmax(masked), inputs, tmp_path)
    check_equal(report)
    x = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    hidden = ~(x > 0) if mask == "computed" else np.broadcast_to(~causal, x.shape)
    some = ~hidden.all(-1, keepdims=True)
    weights = quantized.predict(x, verbose=0)
    assert np.all(weights[hidden & some] == 0)


@pytest.mark.parametrize("kind", ["sum", "constant", "array", "weight", "product"])
def test_a_step_that_is_hundreds_of_steps_behind_it_is_refused(tmp_path, kind):
    """XNNPACK leaves it to an operator of LiteRT that saturates wrongly."""
    inputs = keras.Input(SHAPE)
    array = np.arange(1, 25, dtype=np.float32).reshape(1, *SHAPE)
    value = {
        "sum": lambda: inputs + 3.0,
        "constant": lambda: inputs * 1e-5 + 3000.0,
        "array": lambda: inputs + array,
        "weight": lambda: Positions()(inputs) * 1.01 - 2.0,
        "product": lambda: inputs * (50 * array),
    }[kind]()
    x = np.random.default_rng(0).normal(size=(64, *SHAPE)).astype(np.float32) * 3000
    model = keras.Model(inputs, ops.relu6(value))
    with pytest.warns(UserWarning, match="cannot be exported: .*steps of its output"):
        quantized = tfc.quantize(model, calibration_data=x)
    with pytest.raises(ValueError, match=r"steps of its output, whose range is far too narrow"):
        tfc.export_tflite(quantized, tmp_path / "m.tflite")


def test_a_relu_with_a_ceiling_in_a_wider_range(tmp_path):
    """What it joins reaches further, so that rounding does not hold the ceiling."""
    inputs = keras.Input(SHAPE)
    outputs = {}
    for ceiling in (1.0, 4.0):
        x = layers.Dense(6, kernel_initializer=keras.initializers.Orthogonal(3.0))(inputs)
        relu, fused = layers.ReLU(ceiling), layers.ReLU(ceiling)(layers.Dense(6)(x))
        joins = {
            "chosen": ops.where(x > 0.3, relu(x), x),
            "joined": ops.concatenate([x, relu(x)], -1),
            "fused": ops.concatenate([x, fused], -1),
            "alone": relu(x[:, 1:]),
        }
        outputs |= {f"{name}_{ceiling:g}": join for name, join in joins.items()}
    check_equal(exported(outputs, inputs, tmp_path)[0])
