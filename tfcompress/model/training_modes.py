"""Which layers compute something else in training than in inference."""

from __future__ import annotations

import keras
from keras import layers

from tfcompress.model.kernels import iterate_layers

_NOISY = (
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.AlphaDropout, layers.GaussianDropout),
)


def acting_in_training(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """A layer of Keras, and those inside it, that do: batch norm that is not frozen, and dropout.

    Args:
        layer: A layer or a model.
    """
    return [each for each in iterate_layers(layer) if _acts(each)]


def _acts(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, layers.BatchNormalization):
        return layer.trainable
    if isinstance(layer, _NOISY):
        return layer.rate > 0
    if isinstance(layer, layers.GaussianNoise):
        return layer.stddev > 0
    shares = (getattr(layer, name, 0.0) for name in ("dropout", "recurrent_dropout"))
    return any(isinstance(share, float) and share > 0 for share in shares)
