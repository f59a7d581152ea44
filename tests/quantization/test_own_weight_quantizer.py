"""A weight quantizer of one's own, in one file: trained, saved, pruned, clustered, exported."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights


@keras.saving.register_keras_serializable("own_quantizers")
@dataclasses.dataclass(frozen=True)
class Ternary(tfc.WeightQuantizer):
    """−s, 0, s, where |w| above 0.7 · mean |w| is not 0, and s is its mean (Li et al. 2016)."""

    threshold: float = 0.7

    def quantize(self, kernel, state, grid, training):
        axes, size = grid.reduced_axes, tf.abs(kernel)
        is_used = size > self.threshold * tf.reduce_mean(size, axes, keepdims=True)
        used = tf.cast(is_used, tf.float32)
        total = tf.reduce_sum(size * used, axes, keepdims=True)
        scale = tf.math.divide_no_nan(total, tf.reduce_sum(used, axes, keepdims=True))
        scale = tf.stop_gradient(tf.where(scale > 0, scale, 1.0))
        rounded = tf.sign(kernel) * used * scale
        return kernel + tf.stop_gradient(rounded - kernel), scale

    def num_bits(self, options):
        return 2


@keras.saving.register_keras_serializable("own_quantizers")
@dataclasses.dataclass(frozen=True)
class LearnedStep(tfc.WeightQuantizer):
    """A trained scale per channel that starts at 2 · mean |w| / √qmax (Esser et al. 2020)."""

    def variables(self, grid):
        return {"step": tfc.VariableSpec(grid.scale_shape, initial=1.0, trainable=True)}

    def fit(self, kernel, grid):
        qmax = 2 ** (grid.options.num_bits - 1) - 1
        start = 2 * np.abs(grid.rows(kernel)).mean(1) / np.sqrt(qmax)
        return {"step": start.reshape(grid.scale_shape)}

    def quantize(self, kernel, state, grid, training):
        qmax = 2 ** (grid.options.num_bits - 1) - 1
        step = tf.maximum(state["step"].value, 1e-6)
        clipped = tf.clip_by_value(kernel / step, -qmax, qmax)
        codes = clipped + tf.stop_gradient(tf.round(clipped) - clipped)
        return codes * step, tf.stop_gradient(step)


TERNARY = tfc.Scheme(tfc.WeightScheme(quantizer=Ternary()))
LEARNED = tfc.Scheme(tfc.WeightScheme(4, quantizer=LearnedStep()))


def float_model():
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="second", activation="relu")(x))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


def quantized(images, scheme=TERNARY):
    return tfc.quantize(float_model(), scheme, calibration_data=images)


def trained(model, digits, epochs=2):
    (images, labels), _ = digits
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model.fit(images[:512], labels[:512], epochs=epochs, verbose=0).history["loss"]


def kernel_of(model, name):
    return np.asarray(model.get_layer(name).effective_weights()["kernel"])


def values_per_channel(kernel):
    return max(len(np.unique(kernel[..., i])) for i in range(kernel.shape[-1]))


def test_it_rounds_trains_is_saved_and_cloned_and_exports_what_it_trained(images, digits, tmp_path):
    model = quantized(images)
    for name in ("conv", "second", "logits"):
        kernel = kernel_of(model, name)
        assert values_per_channel(kernel) == 3
        assert len(np.unique(np.abs(kernel))) == kernel.shape[-1] + 1
    latent = model.get_layer("logits").kernel.numpy()
    used = np.abs(latent) > 0.7 * np.abs(latent).mean(0)
    scale = (np.abs(latent) * used).sum(0) / used.sum(0)
    np.testing.assert_allclose(kernel_of(model, "logits"), np.sign(latent) * used * scale, 1e-5)
    losses = trained(model, digits)
    assert losses[-1] < losses[0]
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    cloned = keras.models.clone_model(model)
    cloned.set_weights(model.get_weights())
    for copy in (loaded, cloned):
        np.testing.assert_array_equal(copy(images), model(images))
    report = tfc.export_tflite(loaded, tmp_path / "m.tflite", verify_data=images)
    assert report.agreement == 1.0
    assert not report.float_tensors
    assert {row.name: (row.num_bits, row.distinct) for row in report.layers} == {
        "conv": (2, 3),
        "second": (2, 3),
        "logits": (2, 3),
    }


def test_strip_bakes_it_in(images):
    model = quantized(images)
    plain = tfc.strip(model)
    np.testing.assert_array_equal(plain.get_layer("second").kernel, kernel_of(model, "second"))
    assert values_per_channel(plain.get_layer("second").kernel.numpy()) == 3


def test_pruned_weights_stay_zero_and_clusters_are_read_first(images, digits, tmp_path):
    model = float_model()
    kernel = model.get_layer("second").kernel
    kernel.assign(kernel.numpy() * (np.abs(kernel.numpy()) > np.median(np.abs(kernel.numpy()))))
    zeros = kernel.numpy() == 0
    model = tfc.quantize(model, TERNARY, calibration_data=images)
    model = tfc.cluster(model, 8)
    trained(model, digits, 1)
    assert not kernel_of(model, "second")[zeros].any()
    # Clusters are shared by all channels, so there is one scale.
    assert len(np.unique(kernel_of(model, "second"))) == 3
    report = tfc.export_tflite(model, tmp_path / "m.tflite", verify_data=images)
    assert report.agreement == 1.0


def test_one_scale_is_that_of_the_folded_kernel(images, tmp_path):
    scheme = tfc.Scheme(tfc.WeightScheme(per_channel=False, quantizer=Ternary()))
    model = quantized(images, scheme)
    bn = model.get_layer("bn")
    bn.gamma.assign(np.linspace(0.5, 2.0, 8))
    folded = kernel_of(model, "conv") * np.asarray(bn.factor())
    assert len(np.unique(np.round(np.abs(folded), 6))) == 2
    assert tfc.export_tflite(model, tmp_path / "m.tflite", verify_data=images).agreement == 1.0


def test_trained_variables_start_at_fit_and_are_saved(images, digits, tmp_path):
    model = quantized(images, LEARNED)
    transform = model.get_layer("second").transforms["kernel"][0]
    assert isinstance(transform, FakeQuantizeWeights)
    latent = model.get_layer("second").kernel.numpy()
    start = transform.state["step"].numpy()
    np.testing.assert_allclose(start.ravel(), 2 * np.abs(latent).mean((0, 1, 2)) / 7**0.5, 1e-5)
    assert any(v is transform.state["step"] for v in model.trainable_variables)
    trained(model, digits, 1)
    assert np.abs(transform.state["step"].numpy() - start).min() > 0
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(images), model(images))
    report = tfc.export_tflite(loaded, tmp_path / "m.tflite", verify_data=images)
    assert report.agreement == 1.0


@pytest.mark.filterwarnings("ignore:No .tflite file can hold")
def test_what_no_file_can_hold_is_refused(images, tmp_path):
    @keras.saving.register_keras_serializable("own_quantizers")
    class Rational(Ternary):
        def limits(self, options):
            return ("weights that are no whole numbers",)

        def describe(self, options):
            return "rational"

    scheme = tfc.Scheme(tfc.WeightScheme(quantizer=Rational()))
    model = quantized(images, scheme)
    assert "rational" in str(model.plan)
    assert "LiteRT cannot hold conv: weights that are no whole numbers" in str(model.plan)
    with pytest.raises(ValueError, match="conv: weights that are no whole numbers"):
        tfc.export_tflite(model, tmp_path / "m.tflite")


@keras.saving.register_keras_serializable("own_quantizers")
class Tanh(tfc.UniformWeights):
    """A gradient scheme: 1 − tanh²(4 · distance to the code) in the stead of 1."""

    def round(self, codes, options, training):
        smooth = tf.tanh(4.0 * (codes - tf.round(codes))) / 4.0
        return smooth + tf.stop_gradient(tf.round(codes) - smooth)


def test_a_gradient_scheme_is_one_method():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="d")])
    scheme = tfc.Scheme(tfc.WeightScheme(quantizer=Tanh()))
    own, usual = (tfc.quantize(model, s).get_layer("d") for s in (scheme, "int8"))
    np.testing.assert_array_equal(
        own.effective_weights()["kernel"], usual.effective_weights()["kernel"]
    )
    with tf.GradientTape() as tape:
        values, _ = own.transformed(training=True)
    gradient = tape.gradient(values["kernel"], own.kernel.value).numpy()
    codes = own.kernel.numpy() / (np.abs(own.kernel.numpy()).max(0) / 127)
    # Float rounding may clip the largest weight of a channel.
    inside = np.abs(codes) < 126.9
    expected = 1 - np.tanh(4 * (codes - np.round(codes))) ** 2
    np.testing.assert_allclose(gradient[inside], expected[inside], atol=1e-3)
    assert inside.sum() == 4
