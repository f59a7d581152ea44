"""Every layer kind: what the quantized Keras model predicts is what XNNPACK computes."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc


def stem(x, filters=8, activation="relu"):
    """What real networks have in front of any layer: a convolution with batch norm."""
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def sequence(x, filters=8):
    """The image as a sequence of 8 steps."""
    return layers.Reshape((8, 8 * filters))(stem(x, filters))


def gate(x):
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(4, 1, activation="relu")(y)
    return layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid")(y)])


def inverted_residual(x):
    y = layers.Conv2D(24, 1, use_bias=False)(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(y))
    return layers.Add()([x, y])


def residual(x):
    y = layers.Conv2D(8, 3, padding="same")(x)
    return layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(y)]))


def two(x):
    a = layers.Conv2D(8, 3, padding="same")(x)
    return a, layers.Conv2D(8, 1)(x)


def three(x):
    return (*two(x), layers.Conv2D(8, 3, padding="same", activation="relu")(x))


def normalization(x):
    return layers.Normalization(mean=[0.3], variance=[0.2])(x)


# Name → model body from an input of 8×8×1. Where the largest allowed difference is not 2 output
# steps it stands with it: what one step of the input is worth through the function.
LAYERS = {
    "dense": (lambda x: layers.Dense(16)(layers.Flatten()(x)), 2),
    "dense_relu": (lambda x: layers.Dense(16, activation="relu")(layers.Flatten()(x)), 2),
    "dense_3d": (lambda x: layers.Dense(16)(sequence(x)), 2),
    "dense_batch_norm": (
        lambda x: layers.ReLU()(layers.BatchNormalization()(layers.Dense(16)(layers.Flatten()(x)))),
        2,
    ),
    "conv1d": (lambda x: layers.Conv1D(8, 3)(sequence(x)), 2),
    "conv1d_causal": (
        lambda x: layers.Conv1D(8, 3, padding="causal", dilation_rate=2)(sequence(x)),
        2,
    ),
    "conv1d_batch_norm": (
        lambda x: layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(8, 3)(sequence(x)))),
        2,
    ),
    "conv2d": (lambda x: layers.Conv2D(8, 3, padding="same")(stem(x)), 2),
    "conv2d_strides": (lambda x: layers.Conv2D(8, 3, 2, "same", activation="relu6")(stem(x)), 2),
    "conv2d_dilated": (lambda x: layers.Conv2D(8, 3, dilation_rate=2)(stem(x)), 2),
    "conv2d_grouped": (lambda x: layers.Conv2D(8, 3, groups=2)(stem(x)), 2),
    "conv2d_batch_norm": (lambda x: stem(stem(x), 8, None), 2),
    "depthwise1d": (lambda x: layers.DepthwiseConv1D(3)(sequence(x)), 2),
    "depthwise2d": (lambda x: layers.DepthwiseConv2D(3, padding="same")(stem(x)), 2),
    "depthwise2d_multiplier": (lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(stem(x)), 2),
    "separable1d": (lambda x: layers.SeparableConv1D(8, 3, activation="relu")(sequence(x)), 4),
    "separable2d": (lambda x: layers.SeparableConv2D(8, 3, padding="same")(stem(x)), 4),
    "separable2d_batch_norm": (
        lambda x: layers.ReLU()(
            layers.BatchNormalization()(layers.SeparableConv2D(8, 3, use_bias=False)(stem(x)))
        ),
        4,
    ),
    "conv2d_transpose": (lambda x: layers.Conv2DTranspose(8, 3, 2, "same")(stem(x)), 2),
    "conv2d_transpose_batch_norm": (
        lambda x: layers.ReLU()(
            layers.BatchNormalization()(layers.Conv2DTranspose(8, 2, 2, use_bias=False)(stem(x)))
        ),
        2,
    ),
    "batch_norm_alone": (lambda x: layers.BatchNormalization()(residual(stem(x))), 2),
    "batch_norm_before_conv": (
        lambda x: layers.Conv2D(8, 3)(
            layers.ReLU()(layers.BatchNormalization()(layers.MaxPooling2D(2)(stem(x))))
        ),
        2,
    ),
    "batch_norm_flat": (lambda x: layers.BatchNormalization()(layers.Flatten()(stem(x))), 2),
    "rescaling": (lambda x: stem(layers.Rescaling(2.0, offset=-1.0)(x), 8, None), 2),
    "normalization": (lambda x: stem(normalization(x), 8, None), 2),
    "max_pooling1d": (lambda x: layers.MaxPooling1D(2)(sequence(x)), 2),
    "max_pooling2d": (lambda x: layers.MaxPooling2D(2)(stem(x)), 2),
    "max_pooling_strides": (lambda x: layers.MaxPooling2D(1, 2)(stem(x)), 2),
    "average_pooling1d": (lambda x: layers.AveragePooling1D(2)(sequence(x)), 2),
    "average_pooling2d": (lambda x: layers.AveragePooling2D(2)(stem(x)), 2),
    "average_pooling_same": (lambda x: layers.AveragePooling2D(3, 1, "same")(stem(x)), 2),
    "average_pooling1d_same": (lambda x: layers.AveragePooling1D(3, 2, "same")(sequence(x)), 2),
    "global_average1d": (lambda x: layers.GlobalAveragePooling1D()(sequence(x)), 2),
    "global_average2d": (lambda x: layers.GlobalAveragePooling2D()(stem(x)), 2),
    "global_max1d": (lambda x: layers.GlobalMaxPooling1D()(sequence(x)), 2),
    "global_max2d": (lambda x: layers.GlobalMaxPooling2D()(stem(x)), 2),
    "zero_padding1d": (lambda x: layers.Conv1D(8, 3)(layers.ZeroPadding1D(2)(sequence(x))), 2),
    "zero_padding2d": (
        lambda x: layers.Conv2D(8, 3, 2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(stem(x))),
        2,
    ),
    "cropping1d": (lambda x: layers.Cropping1D(1)(sequence(x)), 2),
    "cropping2d": (lambda x: layers.Cropping2D(1)(stem(x)), 2),
    "upsampling1d": (lambda x: layers.Conv1D(8, 3)(layers.UpSampling1D(2)(sequence(x))), 2),
    "upsampling2d": (lambda x: layers.Conv2D(8, 3)(layers.UpSampling2D(2)(stem(x))), 2),
    "upsampling2d_uneven": (lambda x: layers.UpSampling2D((1, 2))(stem(x)), 2),
    "upsampling2d_bilinear": (
        lambda x: layers.UpSampling2D(2, interpolation="bilinear")(stem(x)),
        2,
    ),
    "reshape_permute": (lambda x: layers.Permute((2, 1))(sequence(x)), 2),
    "repeat_vector": (
        lambda x: layers.RepeatVector(3)(layers.Dense(8)(layers.Flatten()(x))),
        2,
    ),
    "add": (lambda x: layers.Add()(two(stem(x))), 2),
    "add_three": (lambda x: layers.Add()(three(stem(x))), 2),
    "subtract": (lambda x: layers.Subtract()(two(stem(x))), 2),
    "multiply": (lambda x: layers.Multiply()(two(stem(x))), 2),
    "average": (lambda x: layers.Average()(three(stem(x))), 2),
    "maximum": (lambda x: layers.Maximum()(two(stem(x))), 2),
    "minimum": (lambda x: layers.Minimum()(three(stem(x))), 2),
    "concatenate": (lambda x: layers.Concatenate()(three(stem(x))), 2),
    "dropout": (lambda x: layers.Dense(8)(layers.Dropout(0.5)(layers.Flatten()(stem(x)))), 2),
    "spatial_dropout": (lambda x: layers.Conv2D(8, 3)(layers.SpatialDropout2D(0.2)(stem(x))), 2),
    "residual": (lambda x: residual(stem(x)), 5),
    "squeeze_excite": (lambda x: gate(stem(x)), 2),
    "inverted_residual": (lambda x: inverted_residual(stem(x)), 2),
    "ops": (lambda x: ops.relu(ops.mean(stem(x), axis=(1, 2)) * 2.0 - 0.5), 2),
    "functions_of_tensors": (
        lambda x: (
            keras.activations.relu(stem(x, 8, None), max_value=6)
            + keras.activations.relu(stem(x, 8, None))
        ),
        2,
    ),
    "arrays_per_channel": (
        lambda x: (stem(x) - np.linspace(-1, 1, 8)) * np.linspace(0.5, 2, 8, dtype="float32"),
        2,
    ),
    "ops_residual": (lambda x: ops.concatenate([stem(x) + stem(x), stem(x)], axis=-1), 2),
}

# Activation → largest difference: what one input step is worth through the function.
ACTIVATIONS = {
    "relu": 2,
    "relu6": 2,
    "leaky_relu": 3,
    "sigmoid": 6,
    "hard_sigmoid": 3,
    "tanh": 11,
    "silu": 3,
    "hard_silu": 3,
    "gelu": 3,
    "softmax": 3,
}


def prelu(shared_axes):
    return lambda x: layers.PReLU(shared_axes=shared_axes)(stem(x, 8, None))


def relu_of_a_tensor_that_others_read(x):
    y = layers.Add()(two(stem(x)))
    return layers.Multiply()([y, layers.ReLU()(y)])


CASES = {
    **LAYERS,
    **{
        f"{name}_layer": (lambda x, n=name: layers.Activation(n)(stem(x, 8, None)), largest)
        for name, largest in ACTIVATIONS.items()
    },
    **{
        f"{name}_argument": (lambda x, n=name: layers.Conv2D(8, 3, activation=n)(stem(x)), largest)
        for name, largest in ACTIVATIONS.items()
    },
    "prelu": (prelu([1, 2]), 3),
    "prelu_per_position": (prelu(None), 3),
    "relu_beside_others": (relu_of_a_tensor_that_others_read, 2),
}
# Many cases share one conversion: a model with an output for each.
GROUPS = [list(CASES)[i : i + 14] for i in range(0, len(CASES), 14)]


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: f"{names[0]}..{names[-1]}")
def test_integers_of_the_file_are_the_outputs_of_the_model(names, check_parity):
    inputs = keras.Input((8, 8, 1), name="image")
    model = keras.Model(inputs, {name: CASES[name][0](inputs) for name in names})
    parities, report = check_parity(model)
    assert not report.float_tensors
    assert not report.unverified
    assert set(parities) == set(names)
    wrong = {
        name: p
        for name, p in parities.items()
        if p.equal < 0.99 or p.largest > CASES[name][1] or p.samples < 200 or p.distinct < 64
    }
    assert not wrong


def test_an_input_that_is_an_output_is_rounded_to_its_codes(check_parity):
    """As of an autoencoder that gives the image beside its reconstruction."""
    image = keras.Input((8, 8, 1), name="image")
    again = layers.Conv2D(1, 3, padding="same", name="again")(image)
    parities, report = check_parity(keras.Model(image, {"image": image, "again": again}))
    assert not report.float_tensors
    assert {name: p.equal for name, p in parities.items()} == {"image": 1.0, "again": 1.0}


@pytest.mark.parametrize("given", ["array", "batches"])
def test_a_model_of_one_sample_at_a_time(given, tmp_path):
    """Its reshape would make one sample of a batch."""
    x = np.random.default_rng(0).normal(size=(16, 10, 4)).astype(np.float32)
    inputs = keras.Input((10, 4), batch_size=1)
    y = layers.Conv1D(3, 3, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(ops.reshape(y, (1, -1))))
    data = x if given == "array" else [x[i : i + 1] for i in range(16)]
    quantized = tfc.quantize(model, calibration_data=data)
    quantized.compile("sgd", "mse")
    quantized.fit(x, np.zeros((16, 2)), batch_size=1, verbose=0)
    report = tfc.export_tflite(quantized, tmp_path / "m.tflite", verify_data=data)
    assert report.agreement == 1.0
    assert not report.float_tensors
