"""Tiny `.tflite` files, each made once a session with the stock converter.

They are made without the project's own export, which would make these tests test themselves.
"""

import contextlib
import io
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

IMAGE = tf.TensorSpec((1, 8, 8, 1), tf.float32, name="image")


def convert(functions, tracked, folder, calibration=None, flex=False):
    """Converts `{signature key: tf.function}`; to full int8 where there is calibration data."""
    module = tf.Module()
    module.tracked = [v.value if isinstance(v, keras.Variable) else v for v in tracked]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf.saved_model.save(module, folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[*functions])
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = calibration
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        if flex:
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS,
                tf.lite.OpsSet.SELECT_TF_OPS,
            ]
        return bytes(converter.convert())


@pytest.fixture(scope="session")
def images():
    """Images (32, 8, 8, 1) in 0..1; the first ones are the extremes, so that ranges are whole."""
    x = np.random.default_rng(0).uniform(0, 1, (32, 8, 8, 1)).astype(np.float32)
    x[0], x[1] = 0.0, 1.0
    return x


@pytest.fixture(scope="session")
def small_model():
    """Convolution, depthwise convolution and two dense heads; outputs are a dict."""
    keras.utils.set_random_seed(0)
    return _model("relu")


def _model(activation):
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation=activation, bias_initializer="uniform")(
        inputs
    )
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.Flatten()(x)
    heads = {
        "logits": layers.Dense(3, bias_initializer="uniform", name="logits")(x),
        "embedding": layers.Dense(2, name="embedding")(x),
    }
    return keras.Model(inputs, heads)


@pytest.fixture(scope="session")
def float_file(small_model, tmp_path_factory):
    """`small_model` in float32."""
    serve = tf.function(lambda image: small_model(image), input_signature=[IMAGE])
    folder = str(tmp_path_factory.mktemp("float"))
    return convert({"serving_default": serve}, small_model.variables, folder)


@pytest.fixture(scope="session")
def int8_file(small_model, images, tmp_path_factory):
    """`small_model` in full int8."""
    serve = tf.function(lambda image: small_model(image), input_signature=[IMAGE])
    folder = str(tmp_path_factory.mktemp("int8"))
    return convert(
        {"serving_default": serve},
        small_model.variables,
        folder,
        lambda: ({"image": x[None]} for x in images),
    )


@pytest.fixture(scope="session")
def split_file(images, tmp_path_factory):
    """The same network with HARD_SWISH in it, an int8 op that XNNPACK does not take."""
    keras.utils.set_random_seed(0)
    model = _model("hard_swish")
    serve = tf.function(lambda image: model(image), input_signature=[IMAGE])
    folder = str(tmp_path_factory.mktemp("split"))
    return convert(
        {"serving_default": serve},
        model.variables,
        folder,
        lambda: ({"image": x[None]} for x in images),
    )


@pytest.fixture(scope="session")
def two_signatures_file(small_model, images, tmp_path_factory):
    """Signatures "classify" and "embed" over one backbone, stored once.

    Only the second one has an op that XNNPACK does not take.
    """
    classify = tf.function(
        lambda image: {"logits": small_model(image)["logits"]}, input_signature=[IMAGE]
    )
    embed = tf.function(
        lambda image: {"embedding": keras.ops.hard_silu(small_model(image)["embedding"])},
        input_signature=[IMAGE],
    )

    def calibration():
        for x in images:
            yield "classify", {"image": x[None]}
            yield "embed", {"image": x[None]}

    folder = str(tmp_path_factory.mktemp("two"))
    functions = {"classify": classify, "embed": embed}
    return convert(functions, small_model.variables, folder, calibration)


@pytest.fixture(scope="session")
def int4_weights():
    """Kernel (3, 3, 1, 5) and matrix (320, 3), about 20 % of them exactly zero."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 1, 5)).astype(np.float32)
    matrix = rng.normal(size=(320, 3)).astype(np.float32)
    matrix[rng.uniform(size=matrix.shape) < 0.2] = 0.0
    return kernel, matrix


@pytest.fixture(scope="session")
def int4_file(int4_weights, tmp_path_factory):
    """A convolution (per channel) and a dense layer (range ±3.5) with real INT4 weights."""
    kernel, matrix = map(tf.Variable, int4_weights)
    quantization = tf.quantization

    def serve(image):
        limit = tf.reduce_max(tf.abs(kernel), (0, 1, 2))
        weights = quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -limit, limit, num_bits=4, narrow_range=True
        )
        x = quantization.fake_quant_with_min_max_args(image, 0.0, 1.0)
        x = tf.nn.relu(tf.nn.conv2d(x, weights, 1, "SAME"))
        x = quantization.fake_quant_with_min_max_args(x, 0.0, 6.0)
        weights = quantization.fake_quant_with_min_max_vars(
            matrix, -3.5, 3.5, num_bits=4, narrow_range=True
        )
        x = tf.reshape(x, (1, 320)) @ weights
        return {"logits": quantization.fake_quant_with_min_max_args(x, -40.0, 40.0)}

    function = tf.function(serve, input_signature=[IMAGE])
    folder = str(tmp_path_factory.mktemp("int4"))
    # Ranges come from the fake-quant nodes; calibration only switches integer inputs on.
    data = np.zeros((1, 8, 8, 1), np.float32)
    return convert(
        {"serving_default": function}, (kernel, matrix), folder, lambda: iter([{"image": data}])
    )


@pytest.fixture(scope="session")
def flex_file(tmp_path_factory):
    """A TensorFlow op that LiteRT has no kernel for."""
    function = tf.function(
        lambda image: {"y": tf.linalg.inv(image[0, :, :, 0])}, input_signature=[IMAGE]
    )
    return convert(
        {"serving_default": function}, (), str(tmp_path_factory.mktemp("flex")), flex=True
    )


@pytest.fixture(scope="session")
def tokens_file(tmp_path_factory):
    """An embedding of int32 tokens plus a float input, both outputs float."""
    table = tf.Variable(np.arange(20, dtype=np.float32).reshape(10, 2))
    function = tf.function(
        lambda tokens, weight: {"sum": weight * tf.reduce_sum(tf.gather(table, tokens), 1)},
        input_signature=[
            tf.TensorSpec((1, 3), tf.int32, name="tokens"),
            tf.TensorSpec((1, 2), tf.float32, name="weight"),
        ],
    )
    return convert({"serving_default": function}, [table], str(tmp_path_factory.mktemp("tokens")))
