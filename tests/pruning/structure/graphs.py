"""One small model per graph pattern that channels are followed through."""

import keras
import numpy as np
from keras import layers, ops


def _conv(filters, size=3, **options):
    return layers.Conv2D(filters, size, padding="same", **options)


def _block(x, filters, **options):
    return layers.ReLU()(layers.BatchNormalization()(_conv(filters, **options)(x)))


def _head(x):
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))


def residual(x):
    x = _block(x, 6)
    y = layers.BatchNormalization()(_conv(6)(_block(x, 5)))
    return _head(layers.ReLU()(layers.Add()([x, y])))


def preactivation(x):
    x = _conv(6)(x)
    for _ in range(2):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Add()([x, _conv(6)(y)])
    return _head(layers.BatchNormalization()(x))


def dense_block(x):
    x = _conv(4)(x)
    for _ in range(2):
        x = layers.Concatenate()([x, _block(x, 3)])
    return _head(_conv(5, 1)(layers.BatchNormalization()(x)))


def concat_then_add(x):
    a, b, c = _conv(4)(x), _conv(3)(x), _conv(7)(x)
    return _head(_conv(4)(layers.Add()([layers.Concatenate()([a, b]), c])))


def image_beside_features(x):
    return _head(_conv(4)(layers.Concatenate()([x, _conv(5)(x)])))


def depthwise(x):
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(_block(x, 6))
    return _head(_conv(5, 1)(layers.BatchNormalization()(x)))


def separable(x):
    x = layers.SeparableConv2D(7, 3, depth_multiplier=2)(_block(x, 6))
    return _head(layers.SeparableConv2D(4, 3, use_bias=False)(layers.ReLU()(x)))


def grouped(x):
    x = _block(_block(x, 8), 12, groups=4)
    return _head(_conv(6, groups=3)(x))


def grouped_as_depthwise(x):
    return _head(_conv(4)(_conv(12, groups=6)(_conv(6)(x))))


def channel_shuffle(x):
    x = _block(x, 12, groups=1)
    x = ops.reshape(x, (-1, 8, 8, 3, 4))
    x = ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, 8, 8, 12))
    return _head(_conv(8, groups=4)(x))


def squeeze_excite(x):
    x = _block(x, 8)
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = _conv(8, 1, activation="sigmoid")(_conv(4, 1, activation="relu")(y))
    return _head(layers.Multiply()([x, y]))


def squeeze_excite_dense(x):
    x = _block(x, 8)
    y = layers.Dense(8, "hard_sigmoid")(layers.Dense(4, "silu")(ops.mean(x, (1, 2))))
    return _head(_conv(5)(x * layers.Reshape((1, 1, 8))(y)))


def spatial_attention(x):
    x = _block(x, 6)
    return _head(x * layers.Activation("sigmoid")(_conv(1)(x)))


def flatten_to_dense(x):
    x = layers.MaxPooling2D(2)(_block(x, 6))
    return layers.Dense(3)(layers.Dense(10, "relu")(layers.Flatten()(x)))


def reshape_to_sequence(x):
    x = layers.Reshape((-1, 6))(_conv(6)(x))
    x = layers.Conv1D(8, 3, activation="relu")(x)
    return layers.Dense(3)(layers.GlobalMaxPooling1D()(x))


def flatten_and_back(x):
    x = layers.Reshape((8, 8, 6))(layers.Flatten()(_conv(6)(x)))
    return _head(_conv(4)(x))


def upsampling(x):
    skip = _block(x, 6)
    y = _block(layers.MaxPooling2D()(skip), 8)
    y = layers.Conv2DTranspose(5, 2, strides=2)(y)
    z = layers.UpSampling2D()(_conv(6)(layers.AveragePooling2D(2)(skip)))
    return _head(_conv(4)(layers.Concatenate()([skip + z, y])))


def padding_and_cropping(x):
    x = layers.Cropping2D(1)(layers.ZeroPadding2D(2)(_block(x, 6)))
    return _head(layers.Conv2D(5, 3, strides=2)(ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])))


def split_and_slice(x):
    a, b, c = ops.split(_block(x, 12), 3, axis=-1)
    d = _conv(8)(ops.concatenate([a * b, c], axis=-1))
    return _head(_conv(4)(d[..., :3])) + _head(d[:, 1:, :, 3:])


def permuted(x):
    x = layers.Permute((3, 1, 2))(_conv(6)(x))
    return layers.Dense(3)(ops.mean(ops.transpose(x, (0, 2, 3, 1)), axis=(1, 2)))


def shared_layer(x):
    shared = _conv(6)
    a = shared(_conv(4)(x))
    b = shared(_conv(4)(layers.MaxPooling2D(3, 1, "same")(x)))
    return _head(layers.Concatenate()([a, b]))


def nested(x):
    inner_input = keras.Input(x.shape[1:])
    inner = keras.Model(inner_input, _block(_block(inner_input, 6), 5), name="inner")
    tail = keras.Sequential([keras.Input((8, 8, 5)), _conv(6), layers.ReLU()], name="tail")
    return _head(tail(inner(x)))


def operations(x):
    x = ops.relu6(_conv(6)(x) * np.arange(1.0, 7.0, dtype="float32") + 0.5)
    y = ops.maximum(x, _conv(6)(x)) - ops.minimum(x, 0.3)
    y = ops.squeeze(ops.expand_dims(y / 2.0, 1), 1)
    return _head(layers.PReLU(shared_axes=[1, 2])(ops.silu(y)))


def normalizations(x):
    x = layers.GroupNormalization(-1)(_conv(6)(x))
    x = layers.Rescaling([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], offset=0.5)(x)
    x = layers.UnitNormalization()(layers.GaussianNoise(0.1)(x))
    return _head(layers.Dropout(0.5)(x))


def einsum_dense(x):
    x = layers.EinsumDense("bhwc,cd->bhwd", (8, 8, 6), bias_axes="d")(x)
    return layers.EinsumDense("bhwc,hwcd->bd", (3,), bias_axes="d")(layers.ReLU()(x))


def contraction(x):
    x = layers.Reshape((64, 3))(x)
    q, k, v = layers.Dense(8)(x), layers.Dense(8)(x), layers.Dense(6)(x)
    weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 2, 1))) * 0.3)
    return layers.Dense(3)(ops.mean(ops.matmul(weights, v), axis=1))


def unknown_layer(x):
    mystery = layers.Lambda(lambda t: t[..., ::-1], output_shape=(8, 8, 6), name="mystery")
    return _head(_conv(4)(mystery(_conv(6, name="before")(x))))


#: Patterns in which a removal is exact.
PATTERNS = {
    f.__name__: f
    for f in (
        *(residual, preactivation, dense_block, concat_then_add, image_beside_features),
        *(depthwise, separable, grouped, grouped_as_depthwise, channel_shuffle),
        *(squeeze_excite, squeeze_excite_dense, spatial_attention, flatten_to_dense),
        *(reshape_to_sequence, flatten_and_back, upsampling, padding_and_cropping),
        *(split_and_slice, permuted, shared_layer, nested, operations, normalizations),
        *(einsum_dense, contraction),
    )
}


def build(pattern):
    x = keras.Input((8, 8, 3))
    return keras.Model(x, pattern(x))
