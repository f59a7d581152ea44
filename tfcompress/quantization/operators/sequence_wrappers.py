"""Layers around layers of sequences: TimeDistributed and Bidirectional."""

from __future__ import annotations

import inspect
from typing import Any

from keras import layers

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.operators.builder import Builder
from tfcompress.quantization.operators.registry import OperatorSpec, register
from tfcompress.quantization.operators.steps import SamplesAsSteps, StepsAsSamples
from tfcompress.quantization.operators.tracing import traced


def _time_distributed(layer: layers.TimeDistributed, inputs: Any, **kwargs: Any) -> Any:
    """The layer on the steps as if they were a batch."""
    inner = layer.layer
    if isinstance(inner, layers.Dense):
        return inner(inputs)
    y = inner(StepsAsSamples(name="samples")(inputs))
    return SamplesAsSteps(inputs.shape[1], name="steps")(y)


def _bidirectional(
    layer: layers.Bidirectional, sequences: Any, mask: Any = None, **kwargs: Any
) -> Any:
    """Both layers, the results of the second turned around, and what merges them."""
    forward = layer.forward_layer(sequences, mask=mask)
    backward = layer.backward_layer(sequences, mask=mask)
    if layer.return_sequences:
        backward = backward[:, ::-1]
    if layer.merge_mode is None:
        return [forward, backward]
    merges = {
        "sum": layers.Add,
        "ave": layers.Average,
        "mul": layers.Multiply,
        "concat": layers.Concatenate,
    }
    return merges[layer.merge_mode](name="merged")([forward, backward])


def _time_distributed_layer(b: Builder, node: Node) -> list[Value] | None:
    """The layer, on the steps as if they were a batch."""
    # A layer that takes no mask computes masked steps like others.
    is_masked = node.kwargs.get("mask") is not None
    is_masked = is_masked and "mask" in inspect.signature(node.operation.layer.call).parameters
    if is_masked or None in node.inputs[0].shape[1:]:
        why = "a mask of its steps" if is_masked else "a size that is not known"
        b.result.refused[node.operation] = f"its input has {why}"
        return None
    return traced(_time_distributed)(b, node)


def _bidirectional_layer(b: Builder, node: Node) -> list[Value] | None:
    """Two recurrent layers and what merges their results."""
    layer = node.operation
    masks = [value for value in node.inputs[1:] if not value.is_float]
    if layer.return_state or len(node.inputs) - len(masks) > 1:
        b.result.refused[layer] = "its states are inputs or outputs"
        return None
    return traced(_bidirectional)(b, node)


register(layers.TimeDistributed, spec=OperatorSpec(decompose=_time_distributed_layer))
register(layers.Bidirectional, spec=OperatorSpec(decompose=_bidirectional_layer))
