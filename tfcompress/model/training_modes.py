"""Which layers compute something else in training than in inference."""

from __future__ import annotations

import keras
from keras import layers

from tfcompress.model.kernels import iterate_layers

_NOISY = (
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.AlphaDropout, layers.GaussianDropout),
)


def acts_in_training(layer: keras.layers.Layer) -> bool:
    """Whether a layer of Keras, or one inside it, does: batch norm that is not frozen, or dropout.

    Args:
        layer: A layer or a model.
    """
    return any(map(_acts, iterate_layers(layer)))


def _acts(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, layers.BatchNormalization):
        return layer.trainable
    if isinstance(layer, _NOISY):
        return layer.rate > 0
    if isinstance(layer, layers.GaussianNoise):
        return layer.stddev > 0
    shares = (getattr(layer, name, 0.0) for name in ("dropout", "recurrent_dropout"))
    return any(isinstance(share, float) and share > 0 for share in shares)
