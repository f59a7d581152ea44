"""An activation quantizer of one's own: a scale that the optimizer trains."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize


@keras.saving.register_keras_serializable("own_quantizers")
@dataclasses.dataclass(frozen=True)
class LearnedScale(tfc.ActivationQuantizer):
    """The scale is trained; the zero point stays as the range gives it."""

    smallest: float = 1e-6

    def variables(self, options):
        return {"step": tfc.VariableSpec(trainable=True), "zero_point": tfc.VariableSpec()}

    def from_range(self, low, high, options):
        values = super().from_range(low, high, options)
        return {"step": values["scale"], "zero_point": values["zero_point"]}

    def parameters(self, state, options):
        step = state["step"]
        return tf.where(step == 0, 0.0, tf.maximum(step, self.smallest)), state["zero_point"]


SCHEME = tfc.Scheme(activations=tfc.ActivationScheme(quantizer=LearnedScale()))


def make():
    quantizer = FakeQuantize(tfc.ActivationScheme(symmetric=True, quantizer=LearnedScale()))
    quantizer.build((None, 4))
    return quantizer


def small_model():
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = layers.Dense(8, activation="tanh", name="dense")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


def quantizers(model):
    return [q for q in model.layers if isinstance(q, FakeQuantize)]


def fit(model, digits, epochs=1, callbacks=()):
    (images, labels), _ = digits
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = images[:256], labels[:256]
    return model.fit(*data, epochs=epochs, verbose=0, callbacks=list(callbacks)).history["loss"]


def test_the_gradient_of_the_scale_is_that_of_a_learned_step():
    quantizer = make()
    quantizer.set_range(-1.27, 1.27)
    scale = 0.01
    x = np.float32([[0.123, -0.2061, 5.0, -5.0]])
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(quantizer(x, training=True))
    codes = x / scale
    inside = np.abs(codes) <= 127
    expected = np.where(inside, np.round(codes) - codes, np.clip(codes, -128, 127)).sum()
    gradient = tape.gradient(y, quantizer.state["step"].value)
    assert float(gradient) == pytest.approx(expected, abs=1e-2)


def test_without_calibration_the_first_batch_gives_the_range():
    quantizer = make()
    x = tf.constant([[-0.5, 0.1, 0.2, 0.5]])
    np.testing.assert_array_equal(quantizer(x), x)
    quantizer(x, training=True)
    assert quantizer.range[1] == pytest.approx(0.5, abs=0.01)
    quantizer(10 * x, training=True)
    assert quantizer.range[1] == pytest.approx(0.5, abs=0.01)


def test_it_trains_is_saved_and_cloned_and_exports_what_it_trained(images, digits, tmp_path):
    model = tfc.quantize(small_model(), SCHEME, calibration_data=images)
    assert "LearnedScale" in str(model.plan)
    trained = [q for q in quantizers(model) if q.fixed_range is None]
    before = [float(q.scale) for q in trained]
    losses = fit(model, digits, 2)
    assert losses[-1] < losses[0]
    assert all(float(q.scale) != old for q, old in zip(trained, before, strict=True))
    # LiteRT prescribes the range of a tanh.
    assert [float(q.scale) for q in quantizers(model) if q.fixed_range] == [1 / 128]
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    cloned = keras.models.clone_model(model)
    cloned.set_weights(model.get_weights())
    for copy in (loaded, cloned):
        np.testing.assert_array_equal(copy(images), model(images))
    report = tfc.export_tflite(loaded, tmp_path / "m.tflite", verify_data=images)
    assert report.agreement == 1.0
    assert not report.float_tensors


def test_frozen_it_stays_whatever_the_optimizer_still_moves(images, digits):
    model = tfc.quantize(small_model(), SCHEME, calibration_data=images)
    fit(model, digits)
    schedule = tfc.callbacks.QuantizationSchedule(freeze_ranges_step=4)
    scales = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: scales.append(
            [float(q.scale) for q in quantizers(model)]
        )
    )
    fit(model, digits, 1, [schedule, record])
    assert len(scales) == 8
    assert scales[0] != scales[2]
    assert all(row == scales[4] for row in scales[4:])
