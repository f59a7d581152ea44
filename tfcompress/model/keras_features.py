"""Layers that compute with weights that are not simply their own kernel."""

from __future__ import annotations

import keras
from keras import tree

from tfcompress.model.graph import Graph, is_functional
from tfcompress.model.keras_private import all_layers


def check_plain_kernels(model: keras.Model) -> None:
    """Refuses layers that compute with other weights than their own kernel.

    Args:
        model: Any model; what is not one is left to the checks of the caller.

    Raises:
        ValueError: As `check_float_kernels`, or a layer that reads a variable of another layer.
    """
    if not isinstance(model, keras.Model):
        return
    check_float_kernels(model)
    shared = _shared_variables(model)
    if shared:
        raise ValueError(
            "Expected layers with weights of their own: a copy of the model would have separate "
            f"weights. Received: {'; '.join(shared)}. Call one layer in both places, or give each "
            "its own weights."
        )


def check_float_kernels(model: keras.Model) -> None:
    """Refuses layers whose kernel is not the float variable that they compute with.

    Raises:
        ValueError: A layer that `model.quantize` of Keras has quantized, or whose kernel
            `enable_lora` has extended.
    """
    quantized, extended = [], []
    for layer in all_layers(model):
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


def _shared_variables(model: keras.Model) -> list[str]:
    """What reads a variable of another layer, in words."""
    if not is_functional(model) or not model.built:
        return []
    graph = Graph.from_model(model)
    owners: dict[int, str] = {}
    found = []
    for operation in graph.operations():
        for variable in getattr(operation, "weights", []):
            # States of weight transforms, such as one codebook for all layers, may be shared.
            if "transformed" in variable.path.split("/"):
                continue
            owner = owners.setdefault(id(variable), operation.name)
            if owner != operation.name:
                found.append(f"{operation.name} reads {variable.path} of {owner}")
    for node in graph.nodes:
        leaves = tree.flatten((node.args, node.kwargs))
        found += [f"{node.name} reads {v.path}" for v in leaves if isinstance(v, keras.Variable)]
    return found
