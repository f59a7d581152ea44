"""Decomposition keeps the function, the names and the weights."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.model.graph import Graph
from tfcompress.quantization.placement.decompose import decompose
from tfcompress.quantization.placement.keep_float import KeepFloat

ACTIVATIONS = (
    "relu",
    "relu6",
    "leaky_relu",
    "sigmoid",
    "hard_sigmoid",
    "tanh",
    "silu",
    "hard_silu",
    "gelu",
    "softmax",
)
KERNELS = {
    "dense": lambda a: layers.Dense(4, activation=a),
    "conv2d": lambda a: layers.Conv2D(4, 3, activation=a),
    "depthwise2d": lambda a: layers.DepthwiseConv2D(3, activation=a),
    "separable2d": lambda a: layers.SeparableConv2D(4, 3, activation=a, depth_multiplier=2),
    "transpose2d": lambda a: layers.Conv2DTranspose(4, 3, activation=a),
}
SEQUENCES = {
    "conv1d": lambda a: layers.Conv1D(4, 3, activation=a),
    "depthwise1d": lambda a: layers.DepthwiseConv1D(3, activation=a),
    "separable1d": lambda a: layers.SeparableConv1D(4, 3, activation=a),
}


def close(model, x, atol):
    """The quantized model before any range is known: only weights and fixed ranges are rounded."""
    expected = model(x)
    quantized = tfc.quantize(model)
    assert not quantized.plan.float_layers
    result = quantized(x)
    for key, value in expected.items():
        difference = float(np.abs(result[key] - value).max())
        assert difference <= atol * max(1.0, float(np.abs(value).max())), key


@pytest.mark.parametrize("kinds", [KERNELS, SEQUENCES], ids=["images", "sequences"])
def test_every_activation_of_every_layer_is_applied_once(kinds):
    shape = (6, 6, 4) if kinds is KERNELS else (8, 4)
    inputs = keras.Input(shape)
    outputs = {f"{k}_{a}": make(a)(inputs) for k, make in kinds.items() for a in ACTIVATIONS}
    x = np.random.default_rng(0).normal(0, 2, (4, *shape)).astype(np.float32)
    close(keras.Model(inputs, outputs), x, 0.03)


def test_other_operations_keep_their_function():
    inputs = keras.Input((7, 6, 4))
    a, b, c = (layers.Conv2D(4, 1)(inputs) for _ in range(3))
    swish = layers.Activation("silu")
    outputs = {
        "average": layers.Average()([a, b, c]),
        "maximum": layers.Maximum()([a, b, c]),
        "minimum": layers.Minimum()([a, b, c]),
        "add": layers.Add()([a, b, c]),
        "multiply": layers.Multiply()([a, b, c]),
        "prelu": layers.PReLU(alpha_initializer="uniform")(a),
        "prelu_shared": layers.PReLU(alpha_initializer="uniform", shared_axes=[1, 2])(a),
        "pool": layers.AveragePooling2D(3, 2, "same")(a),
        "pool_uniform": layers.AveragePooling2D((1, 2), (1, 2), "same")(a),
        "divide": a / 3.0,
        "relu": ops.maximum(a, 0.0),
        "hard_silu": ops.hard_silu(a),
        "shared_twice": swish(swish(a)),
        "leaky": layers.ReLU(negative_slope=0.1)(a),
    }
    x = np.random.default_rng(0).normal(0, 2, (4, 7, 6, 4)).astype(np.float32)
    close(keras.Model(inputs, outputs), x, 0.02)


def test_a_shared_layer_may_differ_from_call_to_call():
    inputs = keras.Input((8, 8, 2))
    small = layers.Conv2D(2, 3)(inputs)
    pool, mean = layers.AveragePooling2D(3, 1, "same"), layers.Average()
    outputs = {
        "large": pool(inputs),
        "small": pool(small),
        "two": mean([small, small * 2.0]),
        "three": mean([small, small * 2.0, small * 3.0]),
    }
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype(np.float32)
    close(keras.Model(inputs, outputs), x, 0.02)


def test_the_names_of_parts_lead_back_and_weights_are_carried_over():
    inputs = keras.Input((8, 8, 2))
    layer = layers.SeparableConv2D(3, 3, activation="silu", name="sep", bias_initializer="ones")
    model = keras.Model(inputs, layer(inputs))
    graph = Graph.from_model(model)
    result = decompose(graph)
    assert set(result.parts) == {"sep"}
    assert {node.name for node in graph.nodes} == set(result.parts["sep"])
    quantized = tfc.quantize(model)
    np.testing.assert_array_equal(quantized.get_layer("sep").kernel, layer.pointwise_kernel)
    np.testing.assert_array_equal(
        quantized.get_layer("sep_depthwise").kernel, layer.depthwise_kernel
    )
    np.testing.assert_array_equal(quantized.get_layer("sep").bias, np.ones(3))


@pytest.mark.filterwarnings("ignore:Nothing of")
def test_layers_left_in_float_stay_whole():
    inputs = keras.Input((8, 8, 2))
    model = keras.Model(inputs, layers.SeparableConv2D(3, 3, activation="silu", name="s")(inputs))
    result = decompose(Graph.from_model(model), lambda node: True)
    assert (result.parts, result.replaced) == ({}, {})
    config = tfc.QuantizationConfig(by_name={"s": None})
    quantized = tfc.quantize(model, config)
    kinds = [type(layer) for layer in quantized.layers[1:]]
    assert kinds == [KeepFloat, layers.SeparableConv2D]


def test_masks_and_codebooks_pass_on_to_the_parts(tmp_path):
    keras.utils.set_random_seed(0)
    stack = [keras.Input((10, 10, 3), name="image"), layers.Conv2D(4, 3)]
    stack += [layers.SeparableConv2D(6, 3, activation="relu", name="separable")]
    model = keras.Sequential([*stack, layers.Flatten(), layers.Dense(4)])
    pointwise = model.get_layer("separable").pointwise_kernel
    zeros = np.abs(pointwise.numpy()) < np.median(np.abs(pointwise.numpy()))
    pointwise.assign(np.where(zeros, 0.0, pointwise.numpy()))
    images = np.random.default_rng(0).normal(size=(64, 10, 10, 3)).astype(np.float32)
    for scope in ("layer", "channel", "model"):
        clustered = tfc.cluster(model, 3 if scope == "channel" else 5, scope=scope)
        expected = clustered.get_layer("separable").effective_weights()
        quantized = tfc.quantize(clustered, calibration_data=images)
        assert not quantized.plan.float_layers
        latent = clustered.get_layer("separable")
        for part, name in (("separable_depthwise", "depthwise"), ("separable", "pointwise")):
            layer = quantized.get_layer(part)
            np.testing.assert_array_equal(layer.kernel, getattr(latent, f"{name}_kernel"))
            values = np.asarray(layer.effective_weights()["kernel"])
            step = np.abs(values).max() / 127
            assert np.abs(values - expected[f"{name}_kernel"]).max() <= step
        assert not np.asarray(quantized.get_layer("separable").effective_weights()["kernel"])[
            zeros
        ].any()
        quantized.compile("sgd", "mse")
        quantized.fit(images, np.zeros((64, 4)), verbose=0)
        quantized.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        report = tfc.export_tflite(loaded, tmp_path / "model.tflite", verify_data=images)
        assert report.agreement == 1.0
        codes = {layer.name: layer.distinct for layer in report.layers}
        if scope != "channel":
            assert max(codes["separable"], codes["separable_depthwise"]) <= 5
