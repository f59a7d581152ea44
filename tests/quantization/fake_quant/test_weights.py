"""Weight transforms: kernels on their grids in every scheme, biases on the grid of the sum."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.model.compressed import compress
from tfcompress.model.kernels import kernel_specs
from tfcompress.quantization.fake_quant.affine import code_range
from tfcompress.quantization.fake_quant.biases import RoundBias
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.schemes import WeightScheme

LAYERS = {
    "dense": (lambda: layers.Dense(5), (3, 4)),
    "conv2d": (lambda: layers.Conv2D(5, 3), (1, 6, 6, 2)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (1, 6, 6, 3)),
    "transpose": (lambda: layers.Conv2DTranspose(5, 3), (1, 6, 6, 2)),
}


def build(name, scheme):
    make, shape = LAYERS[name]
    layer = compress(make(), {"kernel": [FakeQuantizeWeights(scheme)]})
    layer.build(shape)
    random = np.random.default_rng(0)
    # Channels of very different sizes, as after folding.
    spec = kernel_specs(layer)[0]
    size = [
        n if a - len(layer.kernel.shape) in spec.output_axes else 1
        for a, n in enumerate(layer.kernel.shape)
    ]
    factor = 10.0 ** random.uniform(-2, 1, size)
    layer.kernel.assign(random.normal(size=layer.kernel.shape) * factor)
    transform = layer.transformed.of_type(FakeQuantizeWeights)["kernel"]
    transform.fit(layer.kernel.numpy())
    return layer, transform


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    "scheme",
    [
        WeightScheme(),
        WeightScheme(4),
        WeightScheme(2),
        WeightScheme(per_channel=False),
        WeightScheme(power_of_two=True),
        WeightScheme(symmetric=False, narrow_range=False),
        WeightScheme(6, observer=tfc.LeastSquares(20)),
        WeightScheme(observer=tfc.Percentile(95.0)),
        WeightScheme(rounding="truncate"),
    ],
    ids=lambda s: f"{s.num_bits}-{s.per_channel}-{s.rounding}-{type(s.observer).__name__}",
)
def test_kernels_lie_on_the_grid_of_their_channel(name, scheme):
    layer, _ = build(name, scheme)
    values, rounded = layer.transformed(training=False)
    kernel, latent = np.asarray(values["kernel"], np.float64), layer.kernel.numpy()
    spec = kernel_specs(layer)[0]
    axes = [a % kernel.ndim for a in spec.output_axes]
    moved = np.moveaxis(kernel, axes, range(len(axes))).reshape(len(rounded.scale), -1)
    scales = np.asarray(rounded.scale, np.float64)[:, None]
    codes = moved / scales
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    qmin, qmax = code_range(scheme.num_bits, scheme.narrow_range)
    assert np.ptp(np.round(codes), axis=1).max() <= qmax - qmin
    assert (len(np.unique(scales)) > 1) == scheme.per_channel or scheme.power_of_two
    if type(scheme.observer) is tfc.MinMax and scheme.rounding == "nearest":
        # Nothing is clipped: no weight is off by more than half a step.
        original = np.moveaxis(latent, axes, range(len(axes))).reshape(moved.shape)
        assert np.all(np.abs(moved - original) <= 0.5001 * scales)


def test_gradients_go_straight_through_and_stop_where_a_fixed_scale_clips():
    layer, transform = build("dense", WeightScheme(observer=tfc.Percentile(80.0)))
    with tf.GradientTape() as tape:
        values, _ = layer.transformed(training=True)
        total = tf.reduce_sum(values["kernel"])
    gradient = tape.gradient(total, layer.kernel.value).numpy()
    inside = np.abs(layer.kernel.numpy()) <= 127 * transform.state["scale"].numpy()
    np.testing.assert_array_equal(gradient, inside)
    assert 0 < inside.mean() < 1


def test_channels_of_zeros():
    for per_channel in (True, False):
        layer, _ = build("dense", WeightScheme(per_channel=per_channel))
        layer.kernel.assign(layer.kernel * np.float32([1, 0, 1, 0, 1]))
        values, rounded = layer.transformed(training=False)
        assert not np.asarray(values["kernel"])[:, [1, 3]].any()
        assert np.all(np.asarray(rounded.scale) > 0)
    layer.kernel.assign(np.zeros((4, 5)))
    assert not np.asarray(layer.effective_weights()["kernel"]).any()


def test_stochastic_rounding_is_of_training_alone():
    layer, _ = build("dense", WeightScheme(rounding="stochastic"))
    first, second = (layer.transformed(training=True)[0]["kernel"] for _ in range(2))
    assert np.abs(first - second).max() > 0
    nearest, _ = build("dense", WeightScheme())
    still = layer.effective_weights()["kernel"]
    np.testing.assert_array_equal(still, nearest.effective_weights()["kernel"])


def test_a_bias_is_rounded_to_the_grid_of_the_sum_in_inference_alone():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, name="d", bias_initializer="uniform")(inputs))
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    layer = tfc.quantize(model, calibration_data=x).get_layer("d")
    values, rounded = layer.transformed(training=False)
    codes = np.asarray(values["bias"], np.float64) / np.asarray(rounded.bias_step, np.float64)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    assert np.abs(np.asarray(values["bias"]) - layer.bias).max() > 0
    training, _ = layer.transformed(training=True)
    np.testing.assert_array_equal(training["bias"], layer.bias)
    assert layer.transformed.of_type(RoundBias)


def test_one_scale_is_that_of_the_folded_kernel():
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization(name="bn")(x))
    model.get_layer("bn").gamma.assign([0.1, -2.0, 0.0, 1.0])
    data = np.random.default_rng(0).normal(size=(16, 8, 8, 2)).astype(np.float32)
    scheme = tfc.Scheme(tfc.WeightScheme(per_channel=False))
    quantized = tfc.quantize(model, scheme, calibration_data=data)
    conv, bn = quantized.get_layer("conv"), quantized.get_layer("bn")
    kernel = np.asarray(conv.effective_weights()["kernel"])
    folded = kernel * np.asarray(bn.factor())
    used = [0, 1, 3]
    step = np.abs(folded[..., used]).max() / 127
    codes = folded[..., used] / step
    np.testing.assert_allclose(codes, np.round(codes), atol=2e-3)
