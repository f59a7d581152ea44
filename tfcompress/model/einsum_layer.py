"""EinsumDense whose output shape is known wherever its input's is."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tfcompress.model.equations import read_einsum
from tfcompress.model.keras_private import padding_mask, tensors_read


@keras.saving.register_keras_serializable(package="tfcompress")
class SizedEinsumDense(layers.EinsumDense):
    """EinsumDense as a part of a layer that was taken apart.

    Keras leaves those sizes unknown that `output_shape` does not name, which attention layers make
    up for by themselves. And it warns that it drops a mask, which a part gets with its inputs.
    """

    keras_class = layers.EinsumDense

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None

    def compute_output_shape(self, input_shape: Any) -> Any:
        given = super().compute_output_shape(input_shape)
        product = read_einsum(self.equation, len(input_shape))
        if product is None or len(product.output) != len(given):
            return given
        sizes = dict(zip(product.left, input_shape, strict=True))
        named = zip(product.output, given, strict=True)
        return tuple(sizes.get(c) if n is None else n for c, n in named)

    def stripped(self) -> list:
        config = self.get_config()
        config.pop("transforms", None)
        read = tensors_read(self)
        shapes = {self.compute_output_shape(tensor.shape)[1:] for tensor in read}
        if len(shapes) == 1:
            # What reads a causal mask off the shape must know it in the plain model, too.
            config["output_shape"] = shapes.pop()
        plain = layers.EinsumDense.from_config(config)
        # Keras' operations drop a mask without a word.
        has_mask = any(padding_mask(tensor) is not None for tensor in read)
        return [keras.ops.copy, plain] if has_mask else [plain]
