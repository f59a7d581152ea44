"""Layers whose kernels Keras itself has quantized, or extended by LoRA."""

from __future__ import annotations

import keras


def check_plain_kernels(model: keras.Model) -> None:
    """Refuses layers that compute with other weights than their kernel.

    Args:
        model: Any model; what is not one is left to the checks of the caller.

    Raises:
        ValueError: A layer that `model.quantize` of Keras has quantized, or whose kernel
            `enable_lora` has extended.
    """
    if not isinstance(model, keras.Model):
        return
    quantized, extended = [], []
    for layer in model._flatten_layers():
        if isinstance(layer, keras.Model):
            continue
        mode = getattr(layer.dtype_policy, "quantization_mode", None)
        if mode is not None:
            quantized.append(f"{layer.name} ({mode})")
        elif getattr(layer, "lora_enabled", False):
            extended.append(layer.name)
    if quantized:
        raise ValueError(
            "Expected float layers. Received: layers that Keras has quantized, whose weights "
            f"cannot be trained or compressed any further: {', '.join(quantized)}. Start from the "
            "model before model.quantize(...); tfcompress.quantize does its own quantization."
        )
    if extended:
        raise ValueError(
            "Expected layers without LoRA. Received: layers that compute with a kernel and its "
            f"low-rank extension: {', '.join(extended)}. Merge them first: build the same model "
            "without enable_lora, and for each of these layers call "
            "plain_layer.kernel.assign(layer.kernel), which is the merged kernel (`embeddings` of "
            "an Embedding); copy the other weights."
        )
