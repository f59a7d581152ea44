"""Calls of every kind: what runs in int8, what stays in float and is named, what is refused.

`tests/parity/test_sweep.py` holds them many to a model, `benchmarks/sweep.py` runs each by itself,
beside the cases of the other parity tests.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.parity import own_layers

#: Name of an input → its shape; those of `INTEGERS` are token numbers 0 … 9.
INPUTS = {
    "vector": (8,),
    "sequence": (6, 8),
    "image": (8, 8, 4),
    "volume": (4, 6, 6, 2),
    "frames": (3, 6, 6, 2),
    "tokens": (4,),
    "token": (1,),
}
INTEGERS = ("tokens", "token")
INT8, FLOAT, REFUSED = "int8", "float", "refused"


@dataclasses.dataclass(frozen=True)
class Case:
    """A call.

    Attributes:
        given: Name of its input.
        make: The call, on a symbolic tensor of that input.
        outcome: What becomes of it: `INT8`, `FLOAT` and named, `REFUSED` before training.
        distinct: Least number of different codes that it gives.
    """

    given: str
    make: Callable
    outcome: str = INT8
    distinct: int = 16


def samples(name: str, count: int) -> np.ndarray:
    """Normal numbers, or sentences of tokens, padded with zeros at the end."""
    random = np.random.default_rng(0)
    if name not in INTEGERS:
        return random.normal(size=(count, *INPUTS[name])).astype(np.float32)
    tokens = random.integers(1, 10, (count, *INPUTS[name])).astype(np.int32)
    for i, sentence in enumerate(tokens):
        sentence[1 + i % sentence.size :] = 0
    return tokens


def symbolic(name: str) -> keras.KerasTensor:
    """An input of that name."""
    return keras.Input(INPUTS[name], dtype="int32" if name in INTEGERS else "float32", name=name)


_RANDOM = np.random.default_rng(7)
_KERNEL = _RANDOM.normal(0, 0.4, (3, 3, 4, 5)).astype(np.float32)
_MATRIX = _RANDOM.normal(0, 0.4, (8, 5)).astype(np.float32)
_CAUSAL = -1e9 * np.triu(np.ones((6, 8), np.float32), 3)
_POSITIONS = _RANDOM.normal(0, 1, (6, 8)).astype(np.float32)


def all_of(given: str, calls: dict, *args, **options) -> dict[str, Case]:
    return {name: Case(given, make, *args, **options) for name, make in calls.items()}


OPERATIONS = {
    **all_of(
        "vector",
        {
            "log_softmax": ops.log_softmax,
            "logaddexp": lambda x: ops.logaddexp(x, 0.5 - x),
            "mod_number": lambda x: ops.mod(x, 0.7),
            "floor_divide_number": lambda x: ops.floor_divide(x, 0.1),
            "sort": ops.sort,
            "relu_threshold": lambda x: layers.ReLU(threshold=0.5)(x),
            "relu_slope_and_ceiling": lambda x: layers.ReLU(2.0, 0.1)(x),
            "relu_function": lambda x: keras.activations.relu(x, 0.1, 1.5, 0.2),
            "leaky_relu_steep": lambda x: layers.LeakyReLU(1.5)(x),
            "where_greater": lambda x: ops.where(x > 0.3, x, 0.13 * x),
            "where_number": lambda x: ops.where(ops.less_equal(x, 0.5), x, 2.0),
            "where_both": lambda x: ops.where(ops.logical_and(x > -1, x < 1), x, -x),
            "where_other": lambda x: ops.where(x[:, ::-1] >= 0, x, 0.37 * x[:, 1:2]),
            "where_array": lambda x: ops.where(x > np.linspace(-1, 1, 8), 0.0, x),
            "where_zeros_like": lambda x: ops.where(x > 0.3, x, ops.zeros_like(x)),
            "ones_like_beside": lambda x: ops.concatenate([x, ops.ones_like(x)], axis=-1),
            "full_like": lambda x: x * ops.full_like(x, 0.7),
        },
    ),
    **all_of(
        "sequence",
        {
            "dilated_gate": lambda x: (
                ops.tanh(layers.Conv1D(6, 3, padding="causal", dilation_rate=2)(x))
                * ops.sigmoid(layers.Conv1D(6, 3, padding="causal", dilation_rate=2)(x))
            ),
            "sum_of_single_filters": lambda x: (
                layers.Conv1D(1, 3, padding="same")(x) + layers.Conv1D(1, 3, padding="same")(x)
            ),
            "mask_minus_infinity": lambda x: ops.softmax(ops.where(x > -1, x, -np.inf)),
            "mask_bias": lambda x: ops.softmax(x + (1.0 - ops.cast(x > -1, "float32")) * -1e9),
            "mask_bias_moved": lambda x: ops.softmax(
                x - ((1.0 - ops.cast(x[:, 0] > -1, "float32")) * 10000.0)[:, None, :]
            ),
            "mask_constant": lambda x: layers.Softmax()(x + _CAUSAL),
            "mask_of_pooling": lambda x: layers.GlobalMaxPooling1D()(
                x - (1.0 - ops.cast(x[:, :, :1] > -1, "float32")) * 1e9
            ),
            "mask_by_full_like": lambda x: ops.softmax(
                ops.where(x > -1, x, ops.full_like(x, -1e9))
            ),
            "mask_of_maximum": lambda x: ops.max(ops.where(x > 0, x, -1e4), axis=1),
            "log_softmax_axis": lambda x: ops.log_softmax(x, axis=1),
            "diff": lambda x: ops.diff(x, axis=1),
            "cumsum": lambda x: ops.cumsum(x, axis=1),
            "cumsum_last": lambda x: ops.cumsum(x, axis=-1),
            "prod": lambda x: ops.prod(1.5 * x, axis=1),
            "prod_kept": lambda x: ops.prod(1.5 * x, axis=-1, keepdims=True),
            "sort_steps": lambda x: ops.sort(x, axis=1),
            "matmul_constant": lambda x: ops.matmul(x, _MATRIX),
            "einsum_constant": lambda x: ops.einsum("abc,cd->abd", x, _MATRIX),
            "add_positions": lambda x: x + _POSITIONS,
            "subtract_positions": lambda x: x - _POSITIONS[:, :1],
            "multiply_window": lambda x: x * np.hanning(8)[1:7, None].astype(np.float32),
            "divide_window": lambda x: x / np.linspace(1, 3, 6)[:, None].astype(np.float32),
        },
    ),
    **all_of(
        "image",
        {
            "dilated_twice": lambda x: (
                layers.Conv2D(4, 3, padding="same", dilation_rate=2)(x)
                + layers.Conv2D(4, 3, padding="same", dilation_rate=2)(x)
            ),
            "dilated_twice_depthwise": lambda x: (
                layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)(x)
                + layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)(x)
            ),
            "center_crop": lambda x: layers.CenterCrop(5, 6)(x),
            "sum_along_width": lambda x: x + ops.mean(x, axis=(1, 3), keepdims=True),
            "array_along_width": lambda x: x + np.linspace(-1, 1, 8).reshape(1, 1, 8, 1),
            "softmax_of_two_axes": lambda x: layers.Softmax(axis=[1, 2])(x),
            "softmax_of_other_axes": lambda x: layers.Softmax(axis=(1, 3))(x),
            "conv_constant": lambda x: ops.conv(x, _KERNEL),
            "conv_constant_strides": lambda x: ops.conv(x, _KERNEL, 2, "same"),
            "depthwise_constant": lambda x: ops.depthwise_conv(x, _KERNEL[..., :1]),
            "spectral_norm": lambda x: layers.SpectralNormalization(layers.Conv2D(5, 3))(x),
        },
    ),
    **all_of(
        "volume",
        {
            "conv3d_transpose": lambda x: layers.Conv3DTranspose(2, 2)(x),
            "conv3d_transpose_same": lambda x: layers.Conv3DTranspose(
                1, (3, 4, 3), (2, 2, 1), "same", activation="relu", use_bias=False
            )(x),
            "conv3d_transpose_beyond": lambda x: layers.Conv3DTranspose(3, 2, (3, 2, 1))(x),
        },
    ),
    **all_of(
        "frames",
        {
            "conv_lstm1d": lambda x: layers.ConvLSTM1D(3, 3, 2)(ops.reshape(x, (-1, 3, 18, 4))),
            "conv_lstm2d": lambda x: layers.ConvLSTM2D(
                3, 3, padding="same", return_sequences=True, dropout=0.1
            )(x),
        },
    ),
    "one_hot": Case("vector", lambda x: ops.one_hot(ops.argmax(x, -1), 8), distinct=2),
    "one_hot_of_tokens": Case("tokens", lambda x: layers.Dense(4)(ops.one_hot(x, 8)), distinct=16),
    "one_hot_axis": Case("tokens", lambda x: ops.one_hot(x, 8, axis=1), distinct=2),
}

MASKS = {
    **all_of(
        "tokens",
        {
            "masked_lstm": lambda x: layers.LSTM(5, return_sequences=True)(embedded(x)),
            "masked_gru": lambda x: layers.GRU(5)(embedded(x)),
            "masked_simple_rnn": lambda x: layers.SimpleRNN(5, go_backwards=True)(embedded(x)),
            "masked_both_ways": lambda x: layers.Bidirectional(layers.SimpleRNN(3))(embedded(x)),
            "masked_to_zero": lambda x: layers.SimpleRNN(
                5, return_sequences=True, zero_output_for_mask=True
            )(embedded(x)),
            "masked_attention": lambda x: layers.MultiHeadAttention(2, 4)(
                *[embedded(x)] * 2, use_causal_mask=True
            ),
            "masked_dense": lambda x: layers.TimeDistributed(layers.Dense(5))(embedded(x)),
        },
    ),
    "masking": Case("sequence", lambda x: layers.Masking()(ops.round(2.0 * x)), distinct=6),
    "mask_as_factor": Case("sequence", lambda x: x * ops.cast(x > 0.2, "float32")),
    "mask_as_values": Case("sequence", lambda x: ops.where(x > 0, 2.0, -1.0), distinct=2),
    "mask_equal": Case("sequence", lambda x: ops.where(ops.equal(ops.round(x), 1.0), x, -1.0)),
    "discretization": Case(
        "vector", lambda x: layers.Discretization([-1.0, 0.0, 0.4])(x), distinct=4
    ),
    "masked_average": Case("tokens", lambda x: layers.GlobalAveragePooling1D()(embedded(x))),
}


def embedded(x):
    return layers.Embedding(10, 8, mask_zero=True)(x)


OWN_LAYERS = {
    **all_of(
        "image",
        {
            "gate": lambda x: own_layers.Gate()(x),
            "residual_block": lambda x: own_layers.Bottleneck()(x),
            "film": lambda x: own_layers.FilmLayer()(x),
            "clipped": lambda x: own_layers.Clipped(0.5)(x),
            "kernel_reshaped": lambda x: own_layers.Reshaped()(x),
        },
    ),
    **all_of(
        "sequence",
        {
            "trained_positions": lambda x: own_layers.Positions()(x),
            "sinusoids": lambda x: own_layers.Sinusoids()(x),
            "projection": lambda x: own_layers.Projection()(x),
            "kernel_transposed": lambda x: own_layers.Transposed()(x),
            "mixer": lambda x: own_layers.Mixer()(x),
            "self_attention": lambda x: own_layers.SelfAttention()(x),
            "class_token": lambda x: own_layers.ClassToken()(x),
            "tiled_token": lambda x: own_layers.TiledToken()(x),
            "heads": lambda x: own_layers.Heads()(x),
            "learned_queries": lambda x: own_layers.Queries()(x),
            "unrolled_cell": lambda x: own_layers.Unrolled()(x),
            "drop_path": lambda x: x + own_layers.DropPath()(layers.Dense(8)(x)),
            "noise_in_training": lambda x: layers.Dense(8)(own_layers.Noisy()(x)),
        },
    ),
    "kernel_masked": Case("image", lambda x: own_layers.MaskedConv()(x), FLOAT),
    "scale_positive": Case("image", lambda x: own_layers.Positive()(x), FLOAT),
    "counts_its_calls": Case("vector", lambda x: own_layers.Counting()(x), FLOAT),
}


def _function(f) -> Callable:
    return lambda x: layers.Lambda(f)(x)


#: Functions of TensorFlow, in a Lambda as in any custom layer.
TENSORFLOW = {
    **all_of(
        "image",
        {
            f"tf_{name}": _function(f)
            for name, f in {
                "relu_sigmoid": lambda x: tf.nn.relu(x) * tf.math.sigmoid(x),
                "conv2d": lambda x: tf.nn.conv2d(x, _KERNEL, 1, "SAME"),
                "depthwise": lambda x: tf.nn.depthwise_conv2d(
                    x, _KERNEL[..., :1], [1, 1, 1, 1], "SAME"
                ),
                "max_pool_2d": lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"),
                "avg_pool": lambda x: tf.nn.avg_pool2d(x, 2, 2, "VALID"),
                "reduce_mean": lambda x: tf.reduce_mean(x, [1, 2]),
                "reduce_sum": lambda x: tf.reduce_sum(x, -1, keepdims=True),
                "reduce_max": lambda x: tf.reduce_max(x, 1),
                "l2_normalize": lambda x: tf.math.l2_normalize(x, -1),
                "softmax": lambda x: tf.nn.softmax(2.0 * x),
                "log_softmax": lambda x: tf.nn.log_softmax(x),
                "leaky_relu": lambda x: tf.nn.leaky_relu(x, 0.1),
                "elu_exp": lambda x: tf.nn.elu(x) + tf.exp(-x),
                "gelu": lambda x: tf.nn.gelu(x),
                "silu": lambda x: tf.nn.silu(x),
                "pad": lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 2], [0, 0]]),
                "concat_split": lambda x: tf.concat(tf.split(x, 2, -1)[::-1], -1),
                "transpose_reshape": lambda x: tf.reshape(
                    tf.transpose(x, [0, 3, 1, 2]), [-1, 4, 64]
                ),
                "stack_unstack": lambda x: tf.stack(tf.unstack(x, axis=1)[:3], axis=1),
                "clip_abs": lambda x: tf.clip_by_value(tf.abs(x), 0.1, 1.5),
                "where": lambda x: tf.where(x > 0, x, 0.3 * x),
                "matmul": lambda x: tf.matmul(x, tf.transpose(x, [0, 1, 3, 2])),
                "einsum": lambda x: tf.einsum("bhwc,cd->bhwd", x, _MATRIX[:4]),
                "squared_difference": lambda x: tf.math.squared_difference(x, 0.5),
                "rsqrt": lambda x: tf.math.rsqrt(tf.square(x) + 1.0),
                "max_pool": lambda x: tf.nn.max_pool(x, 2, 2, "VALID"),
                "depth_to_space": lambda x: tf.nn.depth_to_space(x, 2),
                "space_to_depth": lambda x: tf.nn.space_to_depth(x, 2),
                "resize": lambda x: tf.image.resize(x, (16, 16)),
                "slice_roll": lambda x: tf.roll(tf.slice(x, [0, 1, 2, 0], [-1, 4, 5, 2]), 1, 2),
                "repeat_sort": lambda x: tf.sort(tf.repeat(x, 2, -1), 1),
                "norm": lambda x: tf.norm(x, axis=-1, keepdims=True),
                "moments": lambda x: tf.subtract(x, tf.nn.moments(x, [1, 2], keepdims=True)[0]),
                "one_hot": lambda x: tf.one_hot(tf.argmin(x, -1), 4) * 0.7 + x,
                "both": lambda x: tf.where(
                    tf.logical_and(x > -1.0, tf.reduce_any(x > 0.5, -1, keepdims=True)), x, 0.1
                ),
                "add_n": lambda x: tf.add_n([x, 0.5 * x, tf.nn.relu(x)]),
                "expand_tile": lambda x: tf.tile(tf.expand_dims(x, 1), [1, 2, 1, 1, 1]),
            }.items()
        },
    ),
    **all_of(
        "sequence",
        {
            f"tf_{name}": _function(f)
            for name, f in {
                "cumsum": lambda x: tf.cumsum(x, 1),
                "cumsum_back": lambda x: tf.cumsum(x, 1, exclusive=True, reverse=True),
            }.items()
        },
    ),
}
#: What the parity test holds, by kind.
KINDS = {
    "operations": OPERATIONS,
    "masks": MASKS,
    "own layers": OWN_LAYERS,
    "tensorflow": TENSORFLOW,
}
