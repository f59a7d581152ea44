"""What constants in the input of a layer add to its bias, and whether the bias can take them."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from tfcompress.model.compressed import is_compressed
from tfcompress.model.graph import Graph, Node
from tfcompress.pruning.structure.tracer import Member, operation_class

_SLIDING = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


def why_not_movable(node: Node, graph: Graph) -> str | None:
    """Why the call's bias cannot take over a constant of its input; `None` where it can."""
    layer, cls = node.operation, operation_class(node.operation)
    name = layer.name
    if len(graph.calls(layer)) > 1:
        return f"emits a constant that the shared layer {name!r} reads"
    if cls in _SLIDING:
        if layer.groups > 1:
            return f"emits a constant that the grouped convolution {name!r} reads"
        if layer.padding != "valid" and any(size > 1 for size in layer.kernel_size):
            return (
                f"emits a constant that {name!r} reads with padding {layer.padding!r}, where it "
                "is missing at the border"
            )
    elif cls is not layers.Dense:
        return f"emits a constant that {name!r} ({cls.__name__}) reads"
    is_fixed = is_compressed(layer) and not layer.use_bias
    if is_fixed and batch_norm_after(node, graph) is None:
        return f"emits a constant that {name!r} reads, which is compressed and has no bias"
    return None


def batch_norm_after(node: Node, graph: Graph) -> keras.Layer | None:
    """The batch norm that alone reads the call; `None` where there is none, or an activation."""
    after = graph.sole_consumer(node.output)
    if after is None or operation_class(after.operation) is not layers.BatchNormalization:
        return None
    activation = getattr(node.operation, "activation", None)
    if len(graph.calls(after.operation)) > 1:
        return None
    return after.operation if activation in (None, keras.activations.linear) else None


def bias_response(layer: keras.Layer, constants: np.ndarray) -> np.ndarray:
    """What constants in the input add to each output channel before the activation."""
    kernel = layer.kernel
    if is_compressed(layer) and "kernel" in layer.transformed.chains:
        kernel = layer.effective_weights()["kernel"]
    kernel = np.asarray(kernel, np.float64)
    kernel = kernel.reshape(-1, *kernel.shape[-2:]).sum(0)
    return (constants @ kernel).astype(np.float32)


def effective_value(member: Member) -> np.ndarray:
    """The variable as a forward pass reads it, after the transforms of a compressed layer."""
    layer, name = member.layer, member.variable.name
    if is_compressed(layer) and name in layer.transformed.chains:
        return np.asarray(layer.effective_weights()[name])
    return np.asarray(member.variable)
