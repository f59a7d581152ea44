"""Bias correction: the mean error of every channel is gone, in the file too, in one sweep."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.model import inference
from tfcompress.model.graph import Graph
from tfcompress.quantization.calibration.bias_correction import BiasCorrection
from tfcompress.quantization.calibration.in_float import in_float
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize

W4 = tfc.Scheme(weights=tfc.WeightScheme(num_bits=4))


def settled(model):
    random = np.random.default_rng(2)
    for layer in model._flatten_layers():
        for variable in layer.weights:
            if variable.name in ("bias", "beta", "moving_mean"):
                variable.assign(random.normal(0, 0.1, variable.shape))
            elif variable.name in ("gamma", "moving_variance"):
                variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(0, 1, (64, 12, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    """Branches, a shared layer, a nested model, a float island, layers without a bias."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    shared = layers.Conv2D(8, 3, padding="same", activation="relu6", name="shared")
    a = shared(x)
    b = shared(layers.Conv2D(8, 1)(a))
    c = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.SeparableConv2D(12, 3, activation="silu")(layers.Concatenate()([a, b, c]))
    nested = [keras.Input((10, 10, 12)), layers.Conv2D(8, 3, use_bias=False, name="inner")]
    nested += [layers.BatchNormalization(), layers.ReLU()]
    y = keras.Sequential(nested, name="nested")(y)
    y = layers.Conv2D(8, 3, name="island")(y)
    y = layers.BatchNormalization()(layers.Conv2DTranspose(6, 3, strides=2)(y))
    y = layers.GlobalAveragePooling2D()(y)
    outputs = [layers.Dense(5, name="logits")(y), layers.Dense(4, activation="softmax")(y)]
    return settled(keras.Model(inputs, outputs))


def signal_to_noise(reference, values):
    return 10 * np.log10(np.sum(reference**2) / np.sum((reference - values) ** 2))


def test_means_are_those_of_the_float_model_in_the_file_too(model, images, tmp_path):
    config = tfc.QuantizationConfig(W4, by_name={"island": None})
    expected = model.predict(images, verbose=0)[0]
    found, means = {}, {}
    for option in (False, True):
        quantized = tfc.quantize(model, config, calibration_data=images, bias_correction=option)
        if option:
            path = tmp_path / "model.tflite"
            report = tfc.export_tflite(quantized, path, allow_float=True, verify_samples=32)
            assert report.agreement > 0.98
            values = tfc.Runner(path).predict(images)["logits"]
        else:
            values = quantized.predict(images, verbose=0)[0]
        found[option] = signal_to_noise(expected, values)
        means[option] = np.abs((values - expected).mean(0)).max() / expected.std()
    assert means[True] < 0.02 < 0.1 < means[False]
    assert found[True] > found[False] + 10


def corrected(quantized, batches):
    """Corrects the biases of a model that is calibrated already."""
    correction = BiasCorrection(Graph.from_model(quantized), batches)
    with in_float(quantized):
        for batch in batches:
            inference.run(correction.graph, batch, correction.call_measured)
    return correction.correct()


def test_a_shared_layer_gets_the_mean_over_its_calls(images):
    inputs = keras.Input((12, 12, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    model = settled(keras.Model(inputs, shared(layers.ReLU()(shared(inputs)))))
    quantized = tfc.quantize(model, W4, calibration_data=images)
    before = quantized.get_layer("shared").bias.numpy()
    graph = Graph.from_model(quantized)
    calls = graph.calls(quantized.get_layer("shared"))

    def sums():
        found = {}

        def call(node, args, kwargs):
            found[node] = inference.call_in_inference(node, args, kwargs)
            return found[node]

        inference.run(graph, images, call)
        return np.stack([np.asarray(found[node]).mean((0, 1, 2)) for node in calls])

    rounded = sums()
    with in_float(quantized):
        expected = sums()
    assert corrected(quantized, [images]) == ["shared"]
    moved = before - quantized.get_layer("shared").bias.numpy()
    np.testing.assert_allclose(moved, (rounded - expected).mean(0), atol=2e-3)
    assert np.abs(moved).max() > 0.01


def test_every_call_runs_a_fixed_number_of_times(images, monkeypatch):
    """In float, to be measured, and to be gone on from: whatever the depth."""
    counts = {}
    stock = inference.call_in_inference

    def counted(node, args, kwargs):
        counts[node] = counts.get(node, 0) + 1
        return stock(node, args, kwargs)

    stack = [keras.Input((12, 12, 3))]
    for _ in range(4):
        stack += [layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(), layers.ReLU()]
        stack += [layers.Conv2D(4, 3, padding="same", activation="relu")]
    quantized = tfc.quantize(settled(keras.Sequential(stack)), calibration_data=images)
    monkeypatch.setattr(inference, "call_in_inference", counted)
    assert len(corrected(quantized, [images[:32]])) == 8
    assert max(counts.values()) == 3


def test_training_forgets_what_is_corrected_behind_batch_norm(images):
    """Batch norm trains by the statistics of the batch; its moving mean goes to them."""
    stack = [keras.Input((12, 12, 3)), layers.Conv2D(4, 3, use_bias=False)]
    stack += [layers.BatchNormalization(momentum=0.1), layers.ReLU()]
    stack += [layers.GlobalAveragePooling2D(), layers.Dense(2, use_bias=False)]
    model = settled(keras.Sequential(stack))
    found = []
    for option in (False, True):
        quantized = tfc.quantize(model, W4, calibration_data=images, bias_correction=option)
        norm = next(layer for layer in quantized.layers if hasattr(layer, "moving_mean"))
        means = [norm.moving_mean.numpy()]
        for quantizer in quantized.layers:
            if isinstance(quantizer, FakeQuantize):
                quantizer.enabled.assign(0.0)
        quantized.compile("sgd", "mse")
        quantized.fit(images, np.ones((64, 2)), epochs=3, shuffle=False, verbose=0)
        means.append(norm.moving_mean.numpy())
        found.append((means, [w.numpy() for w in quantized.trainable_weights]))
    (plain_means, plain), (means, corrected_weights) = found
    assert np.abs(means[0] - plain_means[0]).max() > 1e-3
    np.testing.assert_allclose(means[1], plain_means[1], atol=1e-5)
    for weight, other in zip(corrected_weights, plain, strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-6)


class Scaled(layers.Layer):
    """x · scale, and + offset: what the runtime folds into the layer before it."""

    def __init__(self, has_offset=False, **kwargs):
        super().__init__(**kwargs)
        self.has_offset = has_offset

    def build(self, shape):
        start = keras.initializers.RandomUniform(0.5, 1.5)
        self.scale = self.add_weight(name="scale", shape=shape[-1:], initializer=start)
        if self.has_offset:
            self.offset = self.add_weight(name="offset", shape=shape[-1:])

    def call(self, x):
        return x * self.scale + self.offset if self.has_offset else x * self.scale


def test_behind_a_kernel_a_trained_scale_leaves_its_bias_to_correct(images):
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3)(inputs)
    outputs = {
        "of_bias": Scaled()(layers.Conv2D(6, 3)(x)),
        "of_offset": Scaled(has_offset=True)(layers.Conv2D(6, 3, use_bias=False)(x)),
        "neither": Scaled()(layers.Conv2D(6, 3, use_bias=False)(x)),
    }
    model = settled(keras.Model(inputs, outputs))
    expected, errors = model.predict(images, verbose=0), {}
    for option in (False, True):
        quantized = tfc.quantize(model, W4, calibration_data=images, bias_correction=option)
        found = quantized.predict(images, verbose=0)
        errors[option] = {
            name: np.abs((found[name] - y).mean((0, 1, 2))).max() / y.std()
            for name, y in expected.items()
        }
    for name in ("of_bias", "of_offset"):
        assert errors[True][name] < min(0.01, errors[False][name] / 2)
