"""Layers of a user's own, of the kinds that people write, each without being registered."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops


class Gate(layers.Layer):
    """Squeeze and excite."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.reduce = layers.Dense(2, activation="relu")
        self.expand = layers.Dense(4, activation="sigmoid")

    def call(self, x):
        return x * self.expand(self.reduce(ops.mean(x, axis=(1, 2), keepdims=True)))


class Bottleneck(layers.Layer):
    """A residual block of Keras layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(4, 3, padding="same", use_bias=False)
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.2)

    def call(self, x, training=None):
        return ops.relu(x + self.drop(self.norm(self.conv(x), training=training)))


class Positions(layers.Layer):
    """A trained value per position."""

    def build(self, shape):
        self.table = self.add_weight(name="table", shape=(1, *shape[1:]), initializer="normal")

    def call(self, x):
        return x + self.table


class Sinusoids(layers.Layer):
    """Constant values per position, computed in `call`."""

    def call(self, x):
        steps, width = x.shape[1:]
        angles = np.arange(steps)[:, None] / 10 ** (np.arange(width) / width)
        return x + np.sin(angles).astype(np.float32)


class Projection(layers.Layer):
    """A kernel and a bias of its own."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(shape[-1], 5))
        self.b = self.add_weight(name="b", shape=(5,), initializer="normal")

    def call(self, x):
        return tf.nn.relu(tf.matmul(x, self.w) + self.b)


class Transposed(layers.Layer):
    """A kernel that is stored as (outputs, inputs)."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(5, shape[-1]))

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.w))


class Reshaped(layers.Layer):
    """A convolution whose kernel is stored as a matrix."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(9 * shape[-1], 5))

    def call(self, x):
        return ops.conv(x, ops.reshape(self.w, (3, 3, x.shape[-1], 5)), padding="same")


class Positive(layers.Layer):
    """Scales that are kept positive by softplus."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(shape[-1],), initializer="normal")

    def call(self, x):
        return x * ops.softplus(self.w)


class MaskedConv(layers.Layer):
    """A causal convolution by a mask on its kernel."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(3, 3, shape[-1], 5))
        self.kept = np.ones((3, 3, 1, 1), np.float32)
        self.kept[2:] = self.kept[1, 2:] = 0

    def call(self, x):
        return ops.conv(x, self.w * self.kept, padding="same")


class FilmLayer(layers.Layer):
    """Scale and offset per channel, computed from the input."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.both = layers.Dense(8)

    def call(self, x):
        scale, offset = ops.split(self.both(ops.mean(x, axis=(1, 2), keepdims=True)), 2, axis=-1)
        return x * (1 + scale) + offset


class Mixer(layers.Layer):
    """A dense layer along the steps."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.mix = layers.LayerNormalization(), layers.Dense(6, activation="gelu")

    def call(self, x):
        return x + ops.swapaxes(self.mix(ops.swapaxes(self.norm(x), 1, 2)), 1, 2)


class SelfAttention(layers.Layer):
    """Attention of `keras.ops`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.query, self.key, self.value = (layers.Dense(8) for _ in range(3))

    def call(self, x):
        scores = ops.matmul(self.query(x), ops.transpose(self.key(x), (0, 2, 1))) / 8**0.5
        return ops.matmul(ops.softmax(scores, axis=-1), self.value(x))


class Clipped(layers.Layer):
    """Control flow by a Python option."""

    def __init__(self, ceiling=None, **kwargs):
        super().__init__(**kwargs)
        self.ceiling = ceiling

    def call(self, x):
        x = ops.relu(x)
        return x if self.ceiling is None else ops.minimum(x, self.ceiling)

    def get_config(self):
        return {**super().get_config(), "ceiling": self.ceiling}


class ClassToken(layers.Layer):
    """A trained token before the others, for each sample."""

    def build(self, shape):
        self.token = self.add_weight(name="token", shape=(1, 1, shape[-1]), initializer="ones")

    def call(self, x):
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([token, x], axis=1)


class TiledToken(ClassToken):
    """The same in TensorFlow, and a row of ones."""

    def call(self, x):
        batch = tf.shape(x)[0]
        ones = tf.ones((batch, 1, x.shape[-1]))
        return tf.concat([tf.tile(self.token, [batch, 1, 1]), ones, x], axis=1)


class Queries(layers.Layer):
    """Trained queries of attention: their projection depends on no input."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 4)

    def build(self, shape):
        self.queries = self.add_weight(
            name="queries", shape=(1, 3, shape[-1]), initializer="normal"
        )

    def call(self, x):
        return self.attention(ops.repeat(self.queries, ops.shape(x)[0], axis=0), x)


class Unrolled(layers.Layer):
    """A cell with an initial state of zeros."""

    def build(self, shape):
        self.cell = layers.GRUCell(6)
        self.cell.build((None, shape[-1]))

    def call(self, x):
        state = tf.zeros([tf.shape(x)[0], 6])
        for step in range(3):
            output, state = self.cell(x[:, step], [state])
            state = state[0] if isinstance(state, (list, tuple)) else state
        return output


class Heads(layers.Layer):
    """Reshapes that name the batch size."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mix = layers.Dense(4)

    def call(self, x):
        batch, steps = ops.shape(x)[0], x.shape[1]
        x = ops.transpose(ops.reshape(x, (batch, steps, 2, 4)), (0, 2, 1, 3))
        mean = ops.broadcast_to(ops.mean(x, axis=1, keepdims=True), (batch, 2, steps, 4))
        return ops.reshape(self.mix(x) + mean, (batch, -1))


@keras.saving.register_keras_serializable("own_layers")
class DropPath(layers.Layer):
    """Drops whole samples, in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(3)

    def call(self, x, training=None):
        if not training:
            return x
        kept = keras.random.uniform((ops.shape(x)[0], 1, 1), seed=self.seed) > 0.3
        return x * ops.cast(kept, x.dtype) / 0.7


@keras.saving.register_keras_serializable("own_layers")
class Noisy(layers.Layer):
    """Random numbers in training."""

    def call(self, x, training=None):
        return x + keras.random.normal(ops.shape(x)) * 0.1 if training else x


class Counting(layers.Layer):
    """A state that `call` updates."""

    def build(self, shape):
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign(self.count + 1.0)
        return 2.0 * x
