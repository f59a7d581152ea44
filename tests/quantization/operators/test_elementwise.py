"""Functions of each value: a table from codes to codes, in training and in the file."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfcompress as tfc
from tfcompress.export.flatbuffer.lookup import kernel_computes
from tfcompress.export.flatbuffer.plan_check import check_plan
from tfcompress.export.flatbuffer.quantize import PlanError, quantize_file
from tfcompress.export.lowering.lower import lower
from tfcompress.quantization.operators.elementwise import ElementwiseFunction


@keras.saving.register_keras_serializable(package="tests_elementwise")
def bump(x):
    return tf.exp(-x * x)


@keras.saving.register_keras_serializable(package="tests_elementwise")
class Halved(layers.Layer):
    def call(self, x):
        return tf.math.sign(x) * 0.5


tfc.register_operator(bump, elementwise=True)
tfc.register_operator(Halved, elementwise=True)

NAMES = (
    *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_tanh", "log_sigmoid", "mish"),
    *("selu", "soft_shrink", "softplus", "softsign", "sparse_plus", "sparse_sigmoid"),
    *("squareplus", "tanh_shrink"),
)
OPERATIONS = (
    *("absolute", "sqrt", "cbrt", "rsqrt", "reciprocal", "sign", "exp", "exp2", "expm1", "log"),
    *("log10", "log1p", "log2", "erf", "erfinv", "sin", "cos", "tan", "arcsin", "arccos", "arctan"),
    *("sinc", "sinh", "cosh", "arcsinh", "arccosh", "arctanh", "floor", "ceil", "round", "trunc"),
    *("nan_to_num", "deg2rad", "rad2deg", "gelu", "elu"),
)
FUNCTIONS = {
    **{f"{n}_layer": (lambda x, n=n: layers.Activation(n)(x)) for n in NAMES},
    **{f"{n}_op": (lambda x, n=n: getattr(ops, n)(x)) for n in OPERATIONS},
    "elu_slope": lambda x: layers.ELU(0.5)(x),
    "elu_of_a_kernel": lambda x: layers.Dense(2, "elu")(x),
    "operation_of_a_kernel": lambda x: layers.Dense(2, ops.softplus)(x),
    "threshold": lambda x: ops.threshold(x, 0.1, -0.5),
    "clip": lambda x: ops.clip(x, -0.5, 0.7),
    "angle": lambda x: ops.arctan2(x, -1.5),
    "angle_to": lambda x: ops.arctan2(0.5, x),
    "cube": lambda x: ops.power(x, 3),
    "power_of_two": lambda x: 2.0**x,
    "inverse": lambda x: 1.0 / x,
    "own": lambda x: layers.Activation(bump)(x),
    "own_in_lambda": lambda x: layers.Lambda(bump)(x),
    "own_layer": lambda x: Halved()(x),
}


_ERF = np.vectorize(math.erf)
FORMULAS = {
    "elu_layer": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "exponential_layer": np.exp,
    "exp_op": np.exp,
    "log_op": np.log,
    "gelu_layer": lambda x: x * (1 + _ERF(x / math.sqrt(2))) / 2,
    "gelu_op": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


@pytest.fixture(scope="module")
def data():
    # Every code of the input occurs, mostly by values between two codes.
    values = np.random.default_rng(0).permutation(np.linspace(-2.1, 3.2, 1024))
    return values.reshape(-1, 4).astype(np.float32)


@pytest.mark.filterwarnings("ignore:The ranges of")
def test_every_code_is_the_function_of_its_value(data, tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, {name: make(x) for name, make in FUNCTIONS.items()})
    assert not tfc.plan(model).float_layers
    quantized = tfc.quantize(model, calibration_data=data)
    report = tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_data=data)
    assert not report.float_tensors
    parities = {p.output: p for p in report.parity["serving_default"]}
    assert {name: p for name, p in parities.items() if p.equal < 1.0} == {}
    runner = tfc.Runner(tmp_path / "model.tflite")
    found = runner.predict(data)
    # The reference: the plain function of the rounded values, in NumPy's rounding.
    first = quantized.get_layer("x_quantizer")
    scale, zero = float(first.scale), float(first.zero_point)
    codes = np.clip(np.rint(data / np.float32(scale)) + zero, -128, 127)
    assert len(np.unique(codes)) == 256
    values = ((codes - zero) * np.float32(scale)).astype(np.float32)
    plain = {name: np.asarray(y) for name, y in model(values).items()}
    for name, expected in plain.items():
        if name.endswith("_of_a_kernel"):
            continue
        step = runner.outputs[name].scale
        low, high = ((end - runner.outputs[name].zero_point) * step for end in (-128, 127))
        finite = np.isfinite(expected)
        error = np.abs(found[name] - np.clip(expected, low, high))[finite] / step
        assert error.max() <= 0.5 + 1e-3, name
    # The codes themselves, by formulas in float64, of what operators of LiteRT compute.
    exact_values = (codes - zero) * np.float64(np.float32(scale))
    for name, formula in FORMULAS.items():
        info = runner.outputs[name]
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = formula(exact_values) / np.float64(info.scale) + info.zero_point
            is_half = np.abs(steps - np.floor(steps) - 0.5) < 1e-3
        given = np.rint(found[name] / info.scale) + info.zero_point
        # Which way a half goes is the runtime's affair.
        sure = np.isfinite(steps) & ~is_half
        assert sure.mean() > 0.35
        np.testing.assert_array_equal(given[sure], np.clip(np.rint(steps[sure]), -128, 127), name)


def test_where_a_function_is_not_finite_it_is_that_of_the_nearest_code(data):
    x = keras.Input((4,), name="x")
    outputs = [ops.log(x), ops.sqrt(x), ops.reciprocal(x), ops.rsqrt(x)]
    quantized = tfc.quantize(keras.Model(x, outputs), calibration_data=data)
    step = float(quantized.get_layer("x_quantizer").scale)
    given = np.float32([[-1.0, 0.0, 0.0, -1.0]])
    log, sqrt, reciprocal, rsqrt = (np.asarray(y)[0] for y in quantized(given))
    np.testing.assert_allclose(log, np.log(step), atol=0.05)
    np.testing.assert_array_equal(sqrt, 0.0)
    np.testing.assert_allclose(reciprocal, [-1.0, 1 / step, 1 / step, -1.0], atol=0.5)
    np.testing.assert_allclose(rsqrt, step**-0.5, atol=0.05)
    # The same in training, with a finite gradient.
    variable = tf.Variable(given)
    with tf.GradientTape() as tape:
        outputs = quantized(variable, training=True)
        total = tf.add_n([tf.reduce_sum(y) for y in outputs])
    assert np.isfinite(total)
    assert np.isfinite(tape.gradient(total, variable)).all()


def test_gradients_are_those_of_the_function_in_training_and_inference(data):
    x = keras.Input((4,), name="x")
    quantized = tfc.quantize(keras.Model(x, ops.sin(x)), calibration_data=data)
    given = tf.Variable(np.float32([[0.5, 1.5, -1.0, 2.5]]))
    for training in (True, False):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(quantized(given, training=training))
        np.testing.assert_allclose(tape.gradient(total, given), np.cos(given), atol=0.02)


def test_a_model_with_tables_trains_is_saved_and_stripped(data, tmp_path):
    x = keras.Input((4,), name="x")
    shared = layers.Activation("mish", name="shared")
    inner = keras.Model(x, layers.Dense(3, "elu", name="inner")(x), name="nested")
    y = shared(inner(shared(x)))
    y = layers.Lambda(bump, name="bump")(ops.power(ops.exp(y), 2))
    model = keras.Model(x, layers.Dense(1, name="head")(y))
    # Ranges come from the first batch.
    quantized = tfc.quantize(model)
    quantized.compile(keras.optimizers.SGD(0.05), "mse")
    target = np.sin(data[:, :1])
    losses = quantized.fit(data, target, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    quantized.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(data), quantized(data))
    report = tfc.export_tflite(loaded, tmp_path / "model.tflite", verify_data=data)
    assert report.agreement == 1.0
    plain = tfc.strip(loaded)
    kinds = {type(operation).__name__ for operation in plain.operations}
    assert kinds == {"InputLayer", "Activation", "Dense", "Exp", "Power", "Lambda"}
    assert not [layer for layer in plain.layers if isinstance(layer, ElementwiseFunction)]
    model.set_weights(plain.get_weights())
    np.testing.assert_allclose(plain(data), model(data), rtol=1e-5)
    plain.save(tmp_path / "plain.keras")


def test_the_plan_says_what_runs_outside_xnnpack():
    x = y = keras.Input((4,), name="x")
    for name in ("mish", "selu", "elu", "gelu", "tanh"):
        y = layers.Activation(name, name=name)(y)
    plan = tfc.plan(keras.Model(x, y))
    outside = {entry.name: entry.outside for entry in plan}
    table = ("GATHER",)
    assert outside == {"mish": table, "selu": table, "elu": (), "gelu": ("GELU",), "tanh": ()}
    assert "mish runs outside XNNPACK (GATHER)" in str(plan)


def test_what_is_no_function_of_one_tensor_stays_in_float():
    x, y = keras.Input((4,), name="x"), keras.Input((4,), name="y")
    plan = tfc.plan(keras.Model([x, y], layers.Dense(2)(ops.power(x, y))))
    assert plan.float_layers == {"power": "a table is a function of one tensor"}
    with pytest.raises(ValueError, match="one of decompose, role, elementwise and float_reason"):
        tfc.register_operator(bump, elementwise=True, role="move")


@pytest.fixture(scope="module")
def converted(data, converter):
    x = keras.Input((4,), name="x")
    outputs = [layers.Activation(name, name=name)(x) for name in ("mish", "elu")]
    quantized = tfc.quantize(keras.Model(x, outputs), calibration_data=data)
    lowered = lower(quantized, ["mish", "elu"])
    return converter.convert({"serving_default": lowered}), lowered.planned


@pytest.mark.parametrize("layer", ["mish", "elu"])
def test_another_table_than_was_trained_is_refused(converted, layer):
    data, planned = converted
    file = quantize_file(data, {"serving_default": planned})
    check_plan(file, {"serving_default": planned})

    changes = {"codes": lambda c: np.roll(c, 1), "input_zero_point": lambda z: z + 1}
    for name, change in changes.items():
        other = []
        for tensor in planned:
            if tensor.layer == layer:
                changed = {name: change(getattr(tensor.table, name))}
                table = dataclasses.replace(tensor.table, **changed)
                tensor = dataclasses.replace(tensor, table=table)
            other.append(tensor)
        with pytest.raises(ValueError, match=f"the table of '{layer}'"):
            check_plan(file, {"serving_default": other})
    with pytest.raises(PlanError, match=f"The table of the layer '{layer}': Expected codes of"):
        quantize_file(data, {"serving_default": other}, allow_float=True)


def test_a_kernel_takes_the_place_of_a_table_only_where_it_surely_gives_its_codes():
    x = (np.arange(-128, 128) - 3) * np.float64(np.float32(0.02))
    codes = np.clip(np.rint(np.where(x > 0, x, np.expm1(x)) / np.float32(0.02)) - 30, -128, 127)
    assert kernel_computes("elu", codes, (0.02, 3), (0.02, -30))
    codes[0] += 1
    assert not kernel_computes("elu", codes, (0.02, 3), (0.02, -30))
    # Halves: which way they go is the runtime's affair.
    halves = np.rint(np.maximum(np.arange(-128, 128), 0) / 2.0) - 128
    assert not kernel_computes("elu", halves, (1.0, 0), (2.0, -128))
    # Not finite at the code of 0.
    assert not kernel_computes("log", np.zeros(256), (0.01, -128), (0.02, 0))
