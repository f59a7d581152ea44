"""The plan: what each layer gets, where codes are rounded, and what the runtime cannot hold."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.placement.plan import PlanEntry


def model_of(body, shape=(8, 8, 2)):
    inputs = keras.Input(shape, name="image")
    return keras.Model(inputs, body(inputs))


def sources(model, config="int8"):
    """What the quantizers of the quantized model read: names of operations, in order."""
    quantized = tfc.quantize(model, config)
    found = []
    for layer in quantized.layers:
        if isinstance(layer, FakeQuantize):
            for node in layer._inbound_nodes:
                found.append(node.input_tensors[0]._keras_history.operation.name)
    return found


def conv(name, **options):
    return layers.Conv2D(2, 3, padding="same", name=name, **options)


# Name → (body, operations behind which codes are rounded).
PLACES = {
    "conv_bn_relu": (
        lambda x: layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(conv("c")(x))),
        ["image", "relu"],
    ),
    "conv_read_twice_is_rounded_before_batch_norm": (
        lambda x: [y := conv("c")(x), layers.BatchNormalization(name="bn")(y)],
        ["image", "c", "bn"],
    ),
    "relu_argument_then_batch_norm": (
        lambda x: layers.BatchNormalization(name="bn")(conv("c", activation="relu")(x)),
        ["image", "c", "bn"],
    ),
    "add_relu": (
        lambda x: layers.ReLU(name="relu")(layers.Add(name="add")([conv("a")(x), conv("b")(x)])),
        ["image", "a", "b", "relu"],
    ),
    "moves_do_not_round": (
        lambda x: layers.Flatten()(layers.ZeroPadding2D()(layers.MaxPooling2D()(conv("c")(x)))),
        ["image", "c"],
    ),
    "swish_argument": (
        lambda x: conv("c", activation="swish")(x),
        ["image", "c", "c_activation_sigmoid", "c_activation"],
    ),
    "softmax": (
        lambda x: layers.Dense(3, activation="softmax", name="d")(layers.Flatten()(x)),
        ["image", "d", "d_activation"],
    ),
    "separable": (
        lambda x: layers.SeparableConv2D(2, 3, name="s", activation="relu")(x),
        ["image", "s_depthwise", "s_activation"],
    ),
    "relu_of_maximum_with_zero": (
        lambda x: ops.maximum(conv("c")(x), 0.0),
        ["image", "maximum"],
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_codes_are_rounded_where_the_runtime_rounds_and_nowhere_else(name):
    body, expected = PLACES[name]
    assert sources(model_of(body)) == expected


def test_inputs_of_a_join_share_one_quantizer_and_fixed_ranges_are_rounded_again():
    def body(x):
        a, b = conv("a")(x), layers.MaxPooling2D(1)(conv("b")(x))
        return layers.Concatenate(name="join")([a, b, conv("c", activation="tanh")(x)])

    quantized = tfc.quantize(model_of(body))
    by_name = {la.name: la for la in quantized.layers if isinstance(la, FakeQuantize)}
    shared = by_name["a_quantizer"]
    # On a, on b, and on the tanh behind its own prescribed range.
    assert len(shared._inbound_nodes) == 3
    assert by_name["c_activation_quantizer"].fixed_range == (-1.0, 127 / 128)
    assert "b_quantizer" not in by_name


def test_entries_and_print():
    model = model_of(lambda x: layers.Dense(3, activation="silu", name="d")(layers.Flatten()(x)))
    plan = tfc.plan(model, tfc.Scheme(tfc.WeightScheme(4, per_channel=False, power_of_two=True)))
    entry = next(e for e in plan if e.name == "d")
    assert isinstance(entry, PlanEntry)
    assert entry.type == "Dense"
    assert entry.parts[0] == "d"
    assert set(entry.parts) == {"d", "d_activation_sigmoid", "d_activation"}
    assert entry.weights == "int4 per tensor, power of two"
    text = str(plan)
    for word in ("Quantization plan", "d_activation_sigmoid", "moves codes", "power of two"):
        assert word in text
    assert not plan.float_layers


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (tfc.Scheme(activations=tfc.ActivationScheme(4, True)), ["activations of 4 bits"]),
        ("w4a4", []),
        (tfc.Scheme(tfc.WeightScheme(symmetric=False)), ["affine weights"]),
        (tfc.Scheme(tfc.WeightScheme(narrow_range=False)), ["code −128"]),
        (tfc.Scheme(activations=tfc.ActivationScheme(rounding="truncate")), ["truncated"]),
        (tfc.Scheme(activations=tfc.ActivationScheme(narrow_range=True)), ["narrow-range"]),
        ("int8", []),
        ("w4a8", []),
    ],
)
def test_what_litert_cannot_hold_is_said_before_training_and_trains(scheme, words):
    model = model_of(lambda x: layers.Dense(3, name="d")(layers.Flatten()(x)))
    plan = tfc.plan(model, scheme)
    limits = " ".join(x for found in plan.limits.values() for x in found)
    assert all(word in limits for word in words)
    assert bool(limits) == bool(words)
    assert ("LiteRT cannot hold d" in str(plan)) == bool(words)
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 2)).astype(np.float32)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quantized = tfc.quantize(model, scheme, calibration_data=x)
    assert all(word in str(said[0].message) for word in words)
    assert bool(said) == bool(words)
    quantized.compile(keras.optimizers.SGD(0.01), "mse")
    losses = quantized.fit(x, np.ones((32, 3)), epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("body", "name", "reason"),
    [
        (lambda x: layers.BatchNormalization(axis=1, name="b")(x), "b", "not along the last axis"),
        (lambda x: ops.minimum(x, np.eye(8, 2)), "minimum", "one of its operands is a constant"),
        (lambda x: x[:, :1] + np.ones((8, 8, 2), np.float32), "add", "constant array widens"),
        (
            lambda x: layers.Normalization(invert=True, mean=0.0, variance=2.0, name="n")(x),
            "n",
            "inverted",
        ),
    ],
)
def test_what_stays_in_float_is_named_with_the_reason(body, name, reason):
    plan = tfc.plan(model_of(lambda x: conv("c")(body(x))))
    assert list(plan.float_layers) == [name]
    assert reason in plan.float_layers[name]


def test_a_move_that_the_configuration_leaves_in_float_only_moves():
    def body(x):
        y = layers.Flatten(name="flat")(conv("c")(x))
        return layers.Dense(2, name="d")(y)

    config = tfc.QuantizationConfig(by_name={"flat": None})
    assert sources(model_of(body), config) == ["image", "c", "d"]
    only_dense = tfc.QuantizationConfig(None, by_name={"d": "int8"})
    assert sources(model_of(body), only_dense) == ["c", "d"]
    assert list(tfc.plan(model_of(body), only_dense).float_layers) == ["c"]


def test_the_scheme_of_a_fused_group_is_the_one_that_is_named():
    def body(x):
        return layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(conv("c")(x)))

    symmetric = tfc.Scheme(activations=tfc.ActivationScheme(symmetric=True))
    config = tfc.QuantizationConfig(by_name={"c": symmetric})
    quantizer = tfc.quantize(model_of(body), config).get_layer("relu_quantizer")
    assert quantizer.scheme.symmetric
    assert quantizer.source == "relu"


def applications():
    apps, size = keras.applications, (32, 32, 3)
    options = {"weights": None, "input_shape": size, "classes": 10}
    return {
        "MobileNet": (lambda: apps.MobileNet(alpha=0.25, **options), set()),
        "MobileNetV2": (lambda: apps.MobileNetV2(alpha=0.35, **options), set()),
        "MobileNetV3Small": (lambda: apps.MobileNetV3Small(alpha=0.75, **options), set()),
        "EfficientNetB0": (lambda: apps.EfficientNetB0(**options), set()),
        "EfficientNetV2B0": (lambda: apps.EfficientNetV2B0(**options), set()),
        "ResNet50": (lambda: apps.ResNet50(**options), set()),
        "ResNet50V2": (lambda: apps.ResNet50V2(**options), set()),
        "DenseNet121": (lambda: apps.DenseNet121(**options), set()),
        "VGG16": (lambda: apps.VGG16(**options), set()),
    }


@pytest.mark.parametrize("name", applications())
def test_keras_applications_have_no_float_layer(name):
    make, expected = applications()[name]
    plan = tfc.plan(make())
    assert {entry.type for entry in plan if entry.float_reason} == expected, plan.float_layers
    assert not plan.limits


def test_outputs_and_inputs_of_a_softmax_keep_every_value():
    """A range that leaves values out would cut off the largest of a thousand logits."""
    inputs = keras.Input((8,))
    x = layers.Dense(6, activation="relu", name="hidden")(inputs)
    gate = layers.Softmax(name="gate")(layers.Reshape((6,))(layers.Dense(6, name="scores")(x)))
    model = keras.Model(inputs, layers.Dense(3, name="logits")(layers.Multiply()([x, gate])))
    default = tfc.Scheme(activations=tfc.ActivationScheme(observer=tfc.Percentile(90.0)))

    def observers(config):
        quantized = tfc.quantize(model, config)
        found = {q.source: q.scheme.observer for q in quantized.layers if hasattr(q, "source")}
        return [type(found[name]).__name__ for name in ("hidden", "scores", "logits")]

    assert observers(default) == ["Percentile", "MovingAverage", "MovingAverage"]
    named = tfc.QuantizationConfig(default, by_name={"logits": default})
    assert observers(named) == ["Percentile", "MovingAverage", "Percentile"]
