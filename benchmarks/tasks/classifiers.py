"""Nets of one answer for an image, a clip or a pair, and an embedding."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from benchmarks.tasks import data
from benchmarks.tasks.task import Outputs, Split, Task, accuracy, cross_entropy


@keras.saving.register_keras_serializable(package="benchmarks")
class LayerScale(layers.Layer):
    """A trained factor for each channel, small at first (Touvron et al. 2021)."""

    def build(self, input_shape):
        start = keras.initializers.Constant(0.1)
        self.gamma = self.add_weight(name="gamma", shape=input_shape[-1:], initializer=start)
        self.built = True

    def call(self, x):
        return x * self.gamma


def convnext(train: Split | None = None) -> keras.Model:
    """ConvNeXt (Liu et al. 2022), small: stages of two blocks of 24 and 48 channels."""
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    for stage, size in enumerate((24, 48)):
        if stage:
            x = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Conv2D(size, 2 if stage else 4, strides=2 if stage else 4)(x)
        if not stage:
            x = layers.LayerNormalization(epsilon=1e-6)(x)
        for _ in range(2):
            y = layers.DepthwiseConv2D(7, padding="same")(x)
            y = layers.LayerNormalization(epsilon=1e-6)(y)
            y = layers.Dense(size)(layers.Dense(4 * size, activation="gelu")(y))
            x = layers.Add()([x, LayerScale()(y)])
    x = layers.LayerNormalization(epsilon=1e-6)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


#: Classes of CIFAR-10 that the backbone is trained on, and those it is transferred to.
BEFORE, AFTER = range(5), range(5, 10)


def backbone() -> keras.Model:
    """MobileNetV3Small of a third of the width, on images of 64×64."""
    body = keras.applications.MobileNetV3Small(
        (64, 64, 3), alpha=0.35, weights=None, include_top=False, pooling="avg"
    )
    for layer in body.layers:
        if isinstance(layer, layers.BatchNormalization):
            # Keras' 0.999 needs thousands of steps, and this trains for hundreds.
            layer.momentum = 0.9
    return body


def transfer(train: Split) -> keras.Model:
    """A frozen MobileNetV3 with a head of its own; the backbone is trained on other classes."""
    body = backbone()
    if train.extra is not None:
        other: Split = train.extra
        whole = _with_head(body)
        steps = 3 * (len(other) // 64)
        rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
        whole.compile(keras.optimizers.Adam(rate), cross_entropy())
        whole.fit(other.inputs[0], other.targets, batch_size=64, epochs=3, verbose=0)
    body.trainable = False
    return _with_head(body)


def _with_head(body: keras.Model) -> keras.Model:
    inputs = keras.Input((32, 32, 3), name="image")
    x = body(layers.UpSampling2D()(inputs))
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(5, name="logits")(x))


def _transfer_data(folder: str | None) -> tuple[Split, Split]:
    train, test = data.pictures_of("cifar10", AFTER, 2000, 1000, folder)
    other, _ = data.pictures_of("cifar10", BEFORE, 4000, 0, folder)
    return Split(train.inputs, train.targets, other), test


def conv3d(train: Split | None = None) -> keras.Model:
    """A 3-D convolutional net of clips."""
    x = inputs = keras.Input((8, 24, 24, 1), name="clip")
    x = layers.Rescaling(1 / 255)(x)
    for filters in (8, 16):
        x = layers.Conv3D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling3D()(x)
    x = layers.Conv3D(24, 3, activation="relu")(layers.ZeroPadding3D((1, 0, 0))(x))
    return keras.Model(inputs, layers.Dense(8, name="logits")(layers.GlobalAveragePooling3D()(x)))


def siamese(train: Split | None = None) -> keras.Model:
    """Two images through one tower; the distance of their vectors tells whether they are alike."""
    image = keras.Input((28, 28, 1))
    x = layers.Rescaling(1 / 255)(image)
    for filters in (12, 24):
        x = layers.Conv2D(filters, 3, strides=2, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    tower = keras.Model(image, layers.Dense(32)(layers.Flatten()(x)), name="tower")
    first, second = (keras.Input((28, 28, 1), name=name) for name in ("first", "second"))
    distance = ops.absolute(tower(first) - tower(second))
    return keras.Model([first, second], layers.Dense(1, name="logit")(distance))


def same_or_not(outputs: Outputs, test: Split) -> float:
    """Accuracy of the sign of a logit, in %."""
    (logits,) = outputs.values()
    return 100 * float(np.mean((logits > 0) == (test.targets > 0.5)))


def embedding(train: Split | None = None) -> keras.Model:
    """After MobileFaceNet (Chen et al. 2018): depthwise blocks, PReLU, a vector of length 1."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = _conv_prelu(x, 16, 2)
    for filters, strides in ((32, 1), (48, 2), (48, 1)):
        y = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(x)
        y = layers.PReLU(shared_axes=[1, 2])(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(filters, 1, use_bias=False)(y))
        x = layers.Add()([x, y]) if x.shape == y.shape else y
    x = layers.DepthwiseConv2D(7, use_bias=False)(x)
    x = layers.Dense(32)(layers.Flatten()(layers.BatchNormalization()(x)))
    return keras.Model(inputs, layers.UnitNormalization(name="embedding")(x))


def _conv_prelu(x, filters: int, strides: int):
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.PReLU(shared_axes=[1, 2])(layers.BatchNormalization()(x))


@keras.saving.register_keras_serializable(package="benchmarks")
def contrastive(classes, vectors):
    """Supervised contrastive loss (Khosla et al. 2020) of a batch of vectors of length 1."""
    classes = ops.reshape(classes, (-1, 1))
    others = 1.0 - ops.eye(ops.shape(vectors)[0])
    same = ops.cast(ops.equal(classes, ops.transpose(classes)), "float32") * others
    scores = ops.matmul(vectors, ops.transpose(vectors)) / 0.1
    logarithm = scores - ops.log(ops.sum(ops.exp(scores) * others, 1, keepdims=True) + 1e-9)
    return -ops.sum(logarithm * same, 1) / ops.maximum(ops.sum(same, 1), 1.0)


#: Images of the test that the others are looked for among.
GALLERY = 700


def nearest(outputs: Outputs, test: Split) -> float:
    """Share of test images, in %, whose nearest one in the gallery is of their class."""
    (vectors,) = outputs.values()
    best = (vectors[GALLERY:] @ vectors[:GALLERY].T).argmax(-1)
    return 100 * float(np.mean(test.targets[best] == test.targets[GALLERY:]))


def _pair_loss() -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True)


_CLASSES = {"metric": "accuracy, %", "loss": cross_entropy, "score": accuracy}

TASKS = (
    Task(
        name="embedding",
        about="after MobileFaceNet, an l2 head of 32, Fashion-MNIST",
        metric="recall@1, %",
        load=lambda folder: data.pictures("fashion_mnist", 6000, 2000, folder),
        build=embedding,
        loss=lambda: contrastive,
        score=nearest,
        epochs=4,
        extra_epochs=1,
        batch_size=128,
    ),
    Task(
        name="siamese",
        about="two inputs, a shared tower, pairs of MNIST",
        metric="accuracy, %",
        load=data.pairs,
        build=siamese,
        loss=_pair_loss,
        score=same_or_not,
        epochs=4,
        extra_epochs=1,
    ),
    Task(
        name="conv3d",
        about="3-D convolutions, direction of moving digits",
        load=data.moving_digits,
        build=conv3d,
        epochs=4,
        extra_epochs=1,
        **_CLASSES,
    ),
    Task(
        name="convnext",
        about="ConvNeXt, CIFAR-10 (JPEG Q75)",
        load=lambda folder: data.pictures("cifar10", 5000, 1000, folder),
        build=convnext,
        epochs=4,
        extra_epochs=1,
        **_CLASSES,
    ),
    Task(
        name="transfer",
        about="frozen MobileNetV3Small and a new head, other classes of CIFAR-10 (JPEG Q75)",
        load=_transfer_data,
        build=transfer,
        epochs=4,
        extra_epochs=1,
        **_CLASSES,
    ),
)
