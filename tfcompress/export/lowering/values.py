"""Which values of a graph hold codes, and what is known of others without computing them."""

from __future__ import annotations

from collections.abc import Callable

import keras

from tfcompress.model.graph import Graph, Node, Value
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.rescaled_input import RescaledInput
from tfcompress.quantization.operators.clipping import ClipTo
from tfcompress.quantization.operators.registry import Role, keeps_codes, role
from tfcompress.quantization.placement.keep_float import KeepFloat


def code_sources(graph: Graph, is_int8: Callable[[Node], bool]) -> dict[Value, Node]:
    """Value that holds codes → the call of the quantizer whose codes they are."""
    sources: dict[Value, Node] = {}
    for node in graph.nodes:
        source: Node | None = None
        if isinstance(node.operation, FakeQuantize):
            source = node
        elif any(v.is_float for v in node.inputs) and (
            keeps_codes(node.operation) and is_int8(node)
        ):
            # Masks and indices hold no codes.
            found = [sources.get(value) for value in node.inputs if value.is_float]
            # A join that is left in float may join codes of several ranges.
            is_join = role(node.operation) is Role.JOIN
            quantizers = {id(s.operation) if s is not None else None for s in found}
            same = None not in quantizers and len(quantizers) == 1
            source = found[0] if same or not is_join else None
        if source is not None:
            sources.update((value, source) for value in node.outputs if value.is_float)
    return sources


def rescaled_inputs(graph: Graph) -> dict[Value, RescaledInput]:
    """Inputs whose codes are those of a rescaled tensor → their quantizer."""
    found: dict[Value, RescaledInput] = {}
    for node in graph.nodes:
        if isinstance(node.operation, RescaledInput):
            value = node.inputs[0]
            found[value if value.node is None else value.node.inputs[0]] = node.operation
    return found


def is_never_negative(value: Value) -> bool:
    """Whether a value is what a ReLU gives, or an average or a choice of such values."""
    node = value.node
    if node is None:
        return False
    if isinstance(node.operation, ClipTo):
        return node.operation.low is not None and node.operation.low >= 0
    if role(node.operation) is Role.RELU:
        return True
    activation = getattr(node.operation, "activation", None)
    if activation in (keras.activations.relu, keras.activations.relu6):
        return True
    passes = isinstance(node.operation, FakeQuantize) or keeps_codes(node.operation)
    if passes or role(node.operation) is Role.AVERAGE:
        return all(is_never_negative(v) for v in node.inputs if v.is_float)
    return False


def before_mark(value: Value) -> Value:
    """What a mark of a layer in float passes on; `value` itself where there is none."""
    node = value.node
    return node.inputs[0] if node is not None and isinstance(node.operation, KeepFloat) else value
