"""A small classifier of the digits, trained once a session, as `.keras` and as `.tflite`."""

import contextlib
import io
import warnings

import keras
import pytest
import tensorflow as tf
from keras import layers


@pytest.fixture(scope="session")
def model_files(digits, tmp_path_factory):
    """Folder with `model.keras`, `float.tflite` and `int8.tflite` of one trained model."""
    (x, y), _ = digits
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), name="image")
    hidden = layers.Dense(32, activation="relu")(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Dense(10, name="logits")(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(x, y, epochs=8, verbose=0)
    folder = tmp_path_factory.mktemp("models")
    model.save(folder / "model.keras")
    one = keras.Input((8, 8, 1), batch_size=1, name="image")
    single = keras.Model(one, model(one))
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converter = tf.lite.TFLiteConverter.from_keras_model(single)
        (folder / "float.tflite").write_bytes(converter.convert())
        converter = tf.lite.TFLiteConverter.from_keras_model(single)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in x[:200])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        (folder / "int8.tflite").write_bytes(converter.convert())
    return folder
