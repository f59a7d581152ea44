"""Nets from images to images: segmentation, super-resolution, reconstruction."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from benchmarks.tasks import data
from benchmarks.tasks.task import Outputs, Split, Task, signal_to_noise


def _block(x, filters: int):
    for _ in range(2):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return x


def _unet(upsampling) -> keras.Model:
    """A U-Net (Ronneberger et al. 2015) of 8, 16 and 32 filters."""
    inputs = keras.Input((32, 32, 3), name="image")
    x, skipped = layers.Rescaling(1 / 255)(inputs), []
    for filters in (8, 16):
        x = _block(x, filters)
        skipped.append(x)
        x = layers.MaxPooling2D()(x)
    x = _block(x, 32)
    for filters, skip in ((16, skipped[1]), (8, skipped[0])):
        x = layers.Concatenate()([upsampling(filters)(x), skip])
        x = _block(x, filters)
    return keras.Model(inputs, layers.Conv2D(1, 1, name="logits")(x))


def unet_transposed(train: Split | None = None) -> keras.Model:
    """Upsampling by transposed convolutions."""
    return _unet(lambda filters: layers.Conv2DTranspose(filters, 2, strides=2))


def unet_bilinear(train: Split | None = None) -> keras.Model:
    """Upsampling by bilinear interpolation."""
    return _unet(lambda filters: layers.UpSampling2D(interpolation="bilinear"))


def espcn(train: Split | None = None) -> keras.Model:
    """Sub-pixel convolution (Shi et al. 2016): twice the size by DEPTH_TO_SPACE."""
    inputs = keras.Input((16, 16, 1), name="luminance")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(32, 5, padding="same", activation="tanh")(x)
    x = layers.Conv2D(16, 3, padding="same", activation="tanh")(x)
    x = layers.Conv2D(4, 3, padding="same")(x)
    return keras.Model(inputs, ops.depth_to_space(x, 2))


def autoencoder(train: Split | None = None) -> keras.Model:
    """A digit as 16 numbers and back, by strided and transposed convolutions."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 255)(inputs)
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    code = layers.Dense(16, name="code")(layers.Flatten()(x))
    x = layers.Dense(7 * 7 * 16, activation="relu")(code)
    x = layers.Reshape((7, 7, 16))(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(1, 3, strides=2, padding="same", activation="sigmoid")(x)
    return keras.Model(inputs, x)


def overlap(outputs: Outputs, test: Split) -> float:
    """Intersection over union of the predicted and the true strokes, all pixels together, in %."""
    (logits,) = outputs.values()
    found, true = logits > 0, test.targets > 0.5
    return 100 * float(np.sum(found & true) / np.sum(found | true))


def _strokes_loss() -> keras.losses.Loss:
    return keras.losses.BinaryCrossentropy(from_logits=True)


_STROKES = {
    "metric": "IoU, %",
    "load": data.strokes,
    "loss": _strokes_loss,
    "score": overlap,
    "epochs": 4,
    "extra_epochs": 1,
}
_IMAGES = {
    "metric": "PSNR, dB",
    "loss": keras.losses.MeanSquaredError,
    "score": signal_to_noise,
    "epochs": 5,
    "extra_epochs": 1,
}

TASKS = (
    Task(
        name="unet_transposed",
        about="U-Net, transposed convolutions, strokes of digits on photographs",
        build=unet_transposed,
        **_STROKES,
    ),
    Task(
        name="unet_bilinear",
        about="U-Net, bilinear upsampling, strokes of digits on photographs",
        build=unet_bilinear,
        **_STROKES,
    ),
    Task(
        name="espcn",
        about="ESPCN, twice the size by depth_to_space, luminance of CIFAR-10 (JPEG Q75)",
        build=espcn,
        load=data.super_resolution,
        **_IMAGES,
    ),
    Task(
        name="autoencoder",
        about="convolutional autoencoder of 16 numbers, MNIST",
        build=autoencoder,
        load=data.reconstruction,
        **_IMAGES,
    ),
)
