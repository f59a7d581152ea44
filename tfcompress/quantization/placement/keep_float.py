"""The mark, in the graph of a quantized model, of what its configuration leaves in float."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="tfcompress")
class KeepFloat(keras.layers.Layer):
    """Passes its input on to a layer that the configuration leaves in float (`None`).

    One such layer is called on every input of every call of that layer. It is part of the graph, so
    copies of the model know what runs in float, however they are made: by `clone_model`, from a
    file, as a part of another model, or cut out at an inner tensor.
    """

    channels_like = keras.layers.Identity
    returns_input = True

    def __init__(self, **kwargs: Any) -> None:
        # The layer behind it casts its input itself.
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any) -> Any:
        return inputs

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def stripped(self) -> list[keras.Layer]:
        """Nothing is left of it in a plain model."""
        return []

    def get_config(self) -> dict[str, Any]:
        # Defined, as Keras' own refuses a class that is made with a dtype policy.
        return {**super().get_config()}
