"""The plan of a quantized model, read from its graph alone.

The graph holds all that an export must know: `KeepFloat` marks the calls that the configuration
leaves in float, and the call of a quantizer says whether an int8 operator computes its tensor. So
a copy of a model has its plan, and what was added to a model after it was quantized has none.
"""

from __future__ import annotations

from collections.abc import Iterator

from tfcompress.model.graph import Graph, Node, Value
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.channel_affine import FoldedAffine
from tfcompress.quantization.operators.registry import Role, keeps_codes, role
from tfcompress.quantization.placement.keep_float import KeepFloat
from tfcompress.quantization.placement.reasons import float_reason, int16_reason


def has_int16(graph: Graph) -> bool:
    """Whether the activations of a quantized model have 16 bits."""
    return any(o.is_int16 for o in graph.operations() if isinstance(o, FakeQuantize))


def is_kept_float(node: Node) -> bool:
    """Whether the configuration leaves a call in float."""
    makers = (value.node for value in node.inputs)
    return any(maker is not None and isinstance(maker.operation, KeepFloat) for maker in makers)


def requested_floats(graph: Graph) -> list[str]:
    """Names of the layers that the configuration leaves in float."""
    return list(dict.fromkeys(node.name for node in graph.nodes if is_kept_float(node)))


def int8_calls(graph: Graph) -> set[Node]:
    """The calls that run in int8, or that only move what they are given.

    An operator that computes runs in int8 if a quantizer says so that rounds what it gives, or what
    the operator gives that it is fused with.
    """
    found: set[Node] = set()
    is_int16 = has_int16(graph)
    for node in reversed(graph.nodes):
        if isinstance(node.operation, KeepFloat | FakeQuantize):
            continue
        if is_kept_float(node) or not _has_form(node, is_int16):
            continue
        readers = [reader for value in node.outputs for reader in graph.consumers(value)]
        if _moves(node) or any(_rounds(r) or _fuses(node, r, found) for r in readers):
            found.add(node)
    return found


def unplanned_calls(graph: Graph) -> Iterator[Node]:
    """The calls with an int8 form that do not run in it, though nobody left them in float.

    They were added to a quantized model, or the model was cut between a layer and a quantizer.
    """
    running, is_int16 = int8_calls(graph), has_int16(graph)
    for node in graph.nodes:
        if isinstance(node.operation, KeepFloat | FakeQuantize) or is_kept_float(node):
            continue
        # Masks and indices hold no codes.
        given = [value for value in node.inputs if value.is_float]
        is_read = all(_is_read(value, node, running) for value in given)
        if _has_form(node, is_int16) and not (node in running and (is_read or _moves(node))):
            yield node


def readers_past_marks(graph: Graph, value: Value) -> list[Node]:
    """The calls that read a value, those of layers in float past their marks."""
    found: list[Node] = []
    for node in graph.consumers(value):
        is_mark = isinstance(node.operation, KeepFloat)
        found += graph.consumers(node.output) if is_mark else [node]
    return found


def _has_form(node: Node, is_int16: bool) -> bool:
    """Whether LiteRT runs a call on codes."""
    if float_reason(node, is_configured=True) is not None:
        return False
    return not is_int16 or int16_reason(node) is None


def _moves(node: Node) -> bool:
    return role(node.operation) in (Role.MOVE, Role.JOIN, Role.SELECT)


def _is_read(value: Value, node: Node, running: set[Node]) -> bool:
    """Whether a call in int8 reads codes, or the sum of the operator that it is fused with."""
    maker = value.node
    while maker is not None and maker in running and keeps_codes(maker.operation):
        maker = maker.inputs[0].node
    if maker is None or isinstance(maker.operation, FakeQuantize):
        return maker is not None
    return maker in running and _fuses(maker, node, running)


def _rounds(reader: Node) -> bool:
    return isinstance(reader.operation, FakeQuantize) and bool(reader.kwargs.get("computed"))


def _fuses(node: Node, reader: Node, running: set[Node]) -> bool:
    """Whether the runtime runs `reader` in the same step as `node`, before it rounds."""
    found = role(node.operation)
    if reader not in running or found is None or keeps_codes(node.operation):
        return False
    if role(reader.operation) is Role.RELU:
        return found.fuses_relu
    if found is Role.KERNEL and isinstance(reader.operation, FoldedAffine):
        return reader.operation.is_folded(reader.kwargs.get("call_index", 0))
    return False
