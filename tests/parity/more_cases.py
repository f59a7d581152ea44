"""Calls that other tests hold, or of which the runtime has no int8 form, for the sweep."""

from keras import layers, ops

from tests.parity.cases import FLOAT, REFUSED, Case, all_of, embedded

ATTENTION = {
    **all_of(
        "sequence",
        {
            "multi_head_attention": lambda x: layers.MultiHeadAttention(2, 4)(x, x),
            "causal_attention": lambda x: layers.MultiHeadAttention(2, 4)(
                x, x, use_causal_mask=True
            ),
            "group_query_attention": lambda x: layers.GroupQueryAttention(4, 4, 2)(x, x),
            "attention": lambda x: layers.Attention(use_scale=True)([x, x]),
            "additive_attention": lambda x: layers.AdditiveAttention()([x, x]),
            "dot": lambda x: layers.Dot((2, 2))([x, x]),
            "matmul": lambda x: ops.matmul(x, ops.swapaxes(x, 1, 2)),
            "einsum": lambda x: ops.einsum("btd,bsd->bts", x, x),
            "einsum_dense": lambda x: layers.EinsumDense("abc,cd->abd", (None, 5))(x),
        },
    ),
    "embedding": Case("tokens", lambda x: layers.Dense(5)(layers.Embedding(10, 8)(x))),
}
RECURRENT = {
    **all_of(
        "sequence",
        {
            "lstm": lambda x: layers.LSTM(5)(x),
            "gru": lambda x: layers.GRU(5, return_sequences=True)(x),
            "gru_reset_before": lambda x: layers.GRU(5, reset_after=False)(x),
            "simple_rnn": lambda x: layers.SimpleRNN(5, activation="relu")(x),
            "rnn_of_cell": lambda x: layers.RNN(layers.LSTMCell(5))(x),
            "rnn_of_stacked_cells": lambda x: layers.RNN([layers.GRUCell(5), layers.GRUCell(4)])(x),
            "bidirectional": lambda x: layers.Bidirectional(layers.GRU(3))(x),
        },
    ),
    "time_distributed": Case("frames", lambda x: layers.TimeDistributed(layers.Conv2D(3, 3))(x)),
}
OTHERS = {
    **all_of(
        "vector",
        {
            "glu": ops.glu,
            "sparsemax": lambda x: layers.Activation("sparsemax")(x),
            "logsumexp": lambda x: ops.logsumexp(x, axis=-1, keepdims=True),
            "median": lambda x: ops.median(x, axis=-1, keepdims=True),
            "argsort": lambda x: ops.argsort(x, axis=-1),
            "arctan2": lambda x: ops.arctan2(x, x[:, ::-1]),
            "hypot": lambda x: ops.hypot(x, x[:, ::-1]),
            "mod_of_tensors": lambda x: ops.mod(x, 0.5 + ops.square(x[:, ::-1])),
            "outer": lambda x: ops.expand_dims(x, 1) * ops.expand_dims(x, 2),
            "tril": lambda x: ops.tril(ops.expand_dims(x, 1) * ops.expand_dims(x, 2)),
            "cumprod": lambda x: ops.cumprod(x, axis=-1),
            "rgb": lambda x: ops.image.rgb_to_hsv(ops.reshape(ops.tile(x, (1, 3)), (-1, 2, 4, 3))),
        },
        FLOAT,
    ),
    **all_of(
        "image",
        {
            "conv2d_groups": lambda x: layers.Conv2D(4, 3, groups=2)(x),
            "resize_bicubic": lambda x: layers.Resizing(12, 12, "bicubic")(x),
            "rgb_to_grayscale": lambda x: ops.image.rgb_to_grayscale(x[..., :3]),
            "extract_patches": lambda x: ops.image.extract_patches(x, 2),
            "random_flip": lambda x: layers.RandomFlip()(x),
            "random_crop": lambda x: layers.RandomCrop(6, 6)(x),
            "average_pool_channels": lambda x: ops.mean(x, axis=-1),
            "normalization": lambda x: layers.Normalization(mean=0.2, variance=2.0)(x),
        },
        FLOAT,
    ),
    **all_of(
        "volume",
        {
            "adaptive_average3d": lambda x: layers.AdaptiveAveragePooling3D(2)(x),
            "adaptive_max3d": lambda x: layers.AdaptiveMaxPooling3D(2)(x),
        },
        FLOAT,
    ),
    **all_of(
        "tokens",
        {
            "category_one_hot": lambda x: layers.CategoryEncoding(10, "one_hot")(x[:, :1]),
            "category_multi_hot": lambda x: layers.CategoryEncoding(10, "multi_hot")(x),
            "hashing": lambda x: layers.Hashing(5)(x),
            "integer_lookup": lambda x: layers.IntegerLookup(vocabulary=[1, 2, 3])(x),
        },
        REFUSED,
    ),
    "conv3d_groups": Case("volume", lambda x: layers.Conv3D(4, 3, groups=2)(x), REFUSED),
}


def _block(x):
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 4)(y, y)
    y = layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x))
    return x + layers.Dense(8)(y)


def _inverted_residual(x):
    y = layers.Conv2D(16, 1, use_bias=False)(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.Activation("hard_silu")(layers.BatchNormalization()(y))
    return x + layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False)(y))


def _u_net(x):
    left = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D(2)(left))
    up = layers.UpSampling2D(2, interpolation="bilinear")(y)
    y = layers.Concatenate()([left, layers.Conv2DTranspose(6, 2, 2)(y), up])
    return layers.Conv2D(2, 1, activation="sigmoid")(y)


def _convnext(x):
    y = layers.LayerNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
    return x + layers.Dense(4)(layers.Dense(16, activation="gelu")(y))


def _embedder(x):
    y = layers.Conv2D(8, 3, activation="relu")(x)
    return layers.UnitNormalization()(layers.Dense(6)(layers.GlobalAveragePooling2D()(y)))


def _super_resolution(x):
    y = layers.Conv2D(16, 3, padding="same", activation="tanh")(x)
    return ops.nn.depth_to_space(layers.Conv2D(4, 3, padding="same")(y), 2)


NETS = {
    "transformer_encoder": Case(
        "tokens", lambda x: layers.Dense(4)(_block(layers.Embedding(10, 8)(x))[:, 0])
    ),
    "vision_transformer": Case(
        "image",
        lambda x: layers.Dense(4)(
            _block(ops.reshape(layers.Conv2D(8, 2, 2)(x), (-1, 16, 8)))[:, 0]
        ),
    ),
    **all_of(
        "image",
        {
            "inverted_residual": _inverted_residual,
            "u_net": _u_net,
            "convnext_block": _convnext,
            "embedder": _embedder,
            "super_resolution": _super_resolution,
            "autoencoder": lambda x: layers.Conv2DTranspose(4, 3, 2, "same", activation="sigmoid")(
                layers.Conv2D(6, 3, 2, "same", activation="elu")(x)
            ),
        },
    ),
    "volume_net": Case(
        "volume",
        lambda x: layers.Dense(3)(layers.Flatten()(layers.Conv3D(4, 3, activation="relu")(x))),
    ),
    "spotter": Case(
        "sequence",
        lambda x: layers.Dense(3)(
            layers.GRU(6)(layers.Conv1D(6, 3, padding="causal", activation="relu")(x))
        ),
    ),
    "text_lstm": Case("tokens", lambda x: layers.Dense(3)(layers.LSTM(5)(embedded(x)))),
}
#: What other tests hold, by kind.
ELSEWHERE = {
    "attention": ATTENTION,
    "recurrent": RECURRENT,
    "others": OTHERS,
    "nets": NETS,
}
