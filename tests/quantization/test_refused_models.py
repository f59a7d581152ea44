"""Models that cannot be quantized are refused before training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc


def dense():
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, name="hidden"), layers.Dense(2, name="logits")]
    )


def techniques(path):
    data = np.ones((4, 8), "float32")
    return {
        "plan": tfc.plan,
        "quantize": tfc.quantize,
        "equalize": lambda m: tfc.quantize(m, equalize=True),
        "cluster": lambda m: tfc.cluster(m, 4),
        "shrink": lambda m: tfc.shrink(m, target_parameters=0.5),
        "factorize": lambda m: tfc.factorize(m, ranks=1),
        "export": lambda m: tfc.export_tflite(m, path, calibration_data=data),
        "export_float": lambda m: tfc.export_tflite(m, path, allow_float=True),
    }


def test_layers_that_keras_has_changed_are_named(tmp_path):
    quantized, int4, lora = dense(), dense(), dense()
    for name in ("hidden", "logits"):
        quantized.get_layer(name).quantize("int8")
        int4.get_layer(name).quantize("int4")
    lora.get_layer("hidden").enable_lora(2)
    for technique in techniques(tmp_path / "m.tflite").values():
        with pytest.raises(ValueError, match=r"hidden \(int8\), logits \(int8\)"):
            technique(quantized)
        with pytest.raises(ValueError, match=r"hidden \(int4"):
            technique(int4)
        with pytest.raises(ValueError, match=r"LoRA.*: hidden\. Merge"):
            technique(lora)


@keras.saving.register_keras_serializable("refused_models")
class Own(keras.Model):
    """A user's class of model."""


@pytest.mark.parametrize("model_class", [keras.Model, Own])
def test_the_legacy_file_format_holds_quantized_models(model_class, tmp_path):
    plain, data = dense(), np.random.default_rng(0).normal(size=(8, 8)).astype("float32")
    quantized = tfc.quantize(model_class(plain.inputs, plain.outputs), calibration_data=data)
    quantized.compile("sgd", "mse")
    quantized.fit(data, np.ones((8, 2)), verbose=0)
    expected = quantized.predict(data, verbose=0)
    for save in (keras.saving.save_model, lambda model, path: model.save(path)):
        save(quantized, tmp_path / "model.h5")
        # Keras cannot read the loss "mse" from such a file, whatever the model.
        loaded = keras.models.load_model(tmp_path / "model.h5", compile=False)
        assert isinstance(loaded, model_class)
        np.testing.assert_array_equal(loaded.predict(data, verbose=0), expected)


def test_pruning_and_distillation_refuse_them_too():
    quantized, lora = dense(), dense()
    quantized.get_layer("hidden").quantize("int8")
    lora.get_layer("hidden").enable_lora(2)
    for model, message in ((quantized, r"hidden \(int8\)"), (lora, r"LoRA.*: hidden\. Merge")):
        with pytest.raises(ValueError, match=message):
            tfc.Pruner(model, tfc.ConstantSparsity(0.5, begin_step=0))
        with pytest.raises(ValueError, match=message):
            tfc.Distiller(dense(), model, tfc.LogitsDistillation())


def test_a_lambda_layer_is_copied_and_named(tmp_path):
    factor = np.float32(2.0)
    inputs = keras.Input((8,))
    doubled = layers.Lambda(lambda x: tf.math.multiply_no_nan(x * factor, x), name="double")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(doubled))
    data = np.random.default_rng(0).normal(size=(8, 8)).astype("float32")
    with pytest.warns(UserWarning, match="double: its function cannot be traced.*multiply_no_nan"):
        quantized = tfc.quantize(model, calibration_data=data)
    span = np.ptp(model.predict(data, verbose=0))
    difference = quantized.predict(data, verbose=0) - model.predict(data, verbose=0)
    assert np.abs(difference).max() < 0.05 * span


def test_a_model_quantized_under_a_strategy_is_exported(tmp_path):
    data = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        quantized = tfc.quantize(dense(), calibration_data=data)
        quantized.compile("sgd", "mse")
    quantized.fit(data, np.zeros((16, 2)), verbose=0)
    assert tfc.export_tflite(quantized, tmp_path / "model.tflite").agreement == 1.0


class Decoder(layers.Layer):
    """Multiplies with the transposed kernel of another layer."""

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.encoder.kernel))


def test_layers_that_share_a_variable_are_named(tmp_path):
    encoder, inputs = layers.Dense(4, name="encoder"), keras.Input((8,))
    tied = keras.Model(inputs, Decoder(encoder, name="decoder")(encoder(inputs)))
    read = keras.Model(inputs, keras.ops.matmul(inputs, encoder.kernel))
    for technique in techniques(tmp_path / "m.tflite").values():
        with pytest.raises(ValueError, match=r"decoder reads encoder/kernel of encoder"):
            technique(tied)
    with pytest.raises(ValueError, match=r"matmul.* reads encoder/kernel"):
        tfc.quantize(read)
    inputs, shared = keras.Input((8,)), layers.Dense(8, name="shared")
    tfc.quantize(keras.Model(inputs, shared(shared(inputs))))


def test_nothing_to_quantize_is_said_at_once():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.ops.isfinite(inputs))
    with pytest.raises(ValueError, match=r"something can be quantized.*isfinite: "):
        tfc.quantize(model)
    left = tfc.QuantizationConfig(default=None)
    with pytest.warns(UserWarning, match="Nothing of .* is quantized"):
        tfc.quantize(dense(), left)
