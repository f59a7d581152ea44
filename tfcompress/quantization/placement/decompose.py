"""Decomposition: operations with a rounding inside become several, each rounded once.

LiteRT rounds to codes after every arithmetic step. An operation of several steps (a separable
convolution, a hard_silu, an average of three tensors) is therefore taken apart before training,
into the form that XNNPACK runs fastest, and what trains is what ships. How an operation is taken
apart is said by its entry in the operator registry.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

from keras import layers

from tfcompress.model.graph import Graph, Node
from tfcompress.quantization.operators.automatic import automatic_rule
from tfcompress.quantization.operators.builder import Builder, Decomposition
from tfcompress.quantization.operators.integer_inputs import before_affine
from tfcompress.quantization.operators.registry import (
    activation_name,
    has_int16_form,
    operator_of,
    unsupported_options,
)


def decompose(
    graph: Graph,
    skip: Callable[[Node], bool] = lambda node: False,
    *,
    is_int16: bool = False,
) -> Decomposition:
    """Takes apart, in place, every operation of `graph` that has a rounding inside.

    Args:
        graph: The graph.
        skip: Tells which calls stay whole (layers left in float).
        is_int16: Whether activations have 16 bits. What has no such form then stays whole, and
            no layer keeps a ReLU of its own: the halves of its codes are summed apart.

    Returns:
        What was done, for the plan.
    """
    result = Decomposition()
    builder = Builder(graph, result, is_int16)
    pending = collections.deque(graph.nodes)
    while pending:
        node = pending.popleft()
        # What computes with integers or masks alone, such as positions, rounds nothing.
        if not any(value.is_float for value in (*node.inputs, *node.outputs)):
            continue
        if skip(node) or unsupported_options(node.operation) is not None:
            continue
        if is_int16 and not has_int16_form(node):
            continue
        if isinstance(node.operation, (layers.Rescaling, layers.Normalization)):
            before_affine(builder, node)
        new = _split_activation(builder, node, is_int16)
        rule = operator_of(node.operation).decompose or automatic_rule(node.operation)
        parts = None if rule is None else builder.apply(rule, node)
        # A part may have a rounding inside, too.
        pending.extendleft(reversed([*(parts or []), *new]))
    return result


def _split_activation(builder: Builder, node: Node, is_int16: bool) -> list[Node]:
    """conv(activation=f) → conv, f, unless the runtime runs f inside the operator."""
    layer, result = node.operation, builder.result
    fused = operator_of(layer).fused_activations
    if fused is not None and is_int16:
        fused = ("linear",)
    if fused is None or activation_name(layer.activation) in fused:
        return []
    if layer not in result.replaced:
        config = {**layer.get_config(), "activation": "linear"}
        result.replaced[layer] = type(layer).from_config(config)
        result.record(layer.name, layer.name)
    builder.node = node
    activation = builder.part(
        lambda name: layers.Activation(layer.activation, name=name, dtype=layer.dtype_policy),
        "activation",
    )
    inserted = builder.graph.insert_after(node.output, activation).node
    assert inserted is not None
    return [inserted]
