"""What was decided, as the entries of a plan: one per operation of the given model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tfcompress.model.graph import Node
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.rescaled_input import RescaledInput
from tfcompress.quantization.operators.integer_inputs import ToFloat
from tfcompress.quantization.operators.registry import Role, keras_class, role
from tfcompress.quantization.placement.advice import slow_operator
from tfcompress.quantization.placement.decisions import Decisions
from tfcompress.quantization.placement.pixels import why_not_folded
from tfcompress.quantization.placement.plan import (
    AS_CONFIGURED,
    TIED_PRODUCT,
    PlanEntry,
    activation_limits,
    describe_quantizer,
    describe_weights,
    weight_limits,
)
from tfcompress.quantization.placement.stored import stored_type


def plan_entries(
    decisions: Decisions, folded: Mapping[Any, RescaledInput]
) -> tuple[PlanEntry, ...]:
    """The entries, in the order of the model's calls.

    Args:
        decisions: What runs in int8, with the quantizers in its graph.
        folded: Operations that a quantizer of an input computes → that quantizer.
    """
    nodes_of: dict[Any, list[Node]] = {}
    for node in decisions.graph.nodes:
        if node.operation in decisions.origin:
            nodes_of.setdefault(decisions.origin[node.operation], []).append(node)
    return tuple(
        _folded_entry(operation, path, folded[operation])
        if operation in folded
        else _entry(decisions, operation, path, nodes_of.get(operation, []))
        for operation, path in decisions.originals
    )


def _folded_entry(operation: Any, path: str, quantizer: RescaledInput) -> PlanEntry:
    """Of a Rescaling that is the scale and zero point of an input."""
    text = f"{describe_quantizer(quantizer)}: scale and zero point of {quantizer.source}"
    exact, whole = quantizer.zero_pixel, math.floor(quantizer.zero_pixel + 0.5)
    is_moved = abs(exact - whole) > 0.01
    note = f"in training and in the file pixel {whole} becomes 0, and not {exact:.4g}"
    notes = (note,) if is_moved else ()
    return PlanEntry(path, keras_class(operation).__name__, (), activations=text, notes=notes)


def _entry(decisions: Decisions, operation: Any, path: str, nodes: list[Node]) -> PlanEntry:
    parts = tuple(dict.fromkeys(node.name for node in nodes))
    # What computes a mask for other parts holds no floating point values; a conversion of
    # integers is exact.
    counted = [n for n in nodes if _has_floats(n)]
    computing = [n for n in counted or nodes if not isinstance(n.operation, ToFloat)]
    scheme = decisions.schemes[operation]
    reason = "" if nodes and not counted else _reason(decisions, computing, len(parts))
    weights, activations = "", "" if nodes else "returns its input"
    limits: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    if scheme is not None and not reason and any(role(n.operation) is Role.KERNEL for n in nodes):
        weights = describe_weights(scheme.weights)
        limits += weight_limits(scheme.weights)
        kernels = [n.operation for n in nodes if role(n.operation) is Role.KERNEL]
        stored = tuple(
            stored_type(layer, scheme.weights, kernels.count(layer)) for layer in kernels
        )
    if nodes and not counted:
        activations = "no floating point values"
    elif counted and not reason:
        activations = _describe_output(decisions, nodes[-1])
        if scheme is not None and "int" in activations:
            limits += activation_limits(scheme.activations)
    in_int8 = [n for n in computing if decisions.is_quantized(n)]
    outside = dict.fromkeys(slow_operator(n.operation) for n in in_int8)
    has_product = any(_is_product(n) for n in in_int8)
    has_ties = has_product and scheme is not None and scheme.activations.power_of_two
    notes = [TIED_PRODUCT] if has_ties else []
    notes += [note for note in (why_not_folded(decisions, n) for n in in_int8) if note]
    return PlanEntry(
        path,
        keras_class(operation).__name__,
        parts,
        weights,
        activations,
        reason,
        limits,
        tuple(dict.fromkeys(notes)),
        any(decisions.is_float(n) and _has_floats(n) for n in computing),
        tuple(operator for operator in outside if operator is not None),
        stored,
    )


def _reason(decisions: Decisions, computing: list[Node], parts: int) -> str:
    """Why an operation stays in float; of several parts, those that do are named."""
    found = ((node, decisions.float_reason(node)) for node in computing)
    reasons = (
        reason if parts == 1 or reason == AS_CONFIGURED else f"{node.name}: {reason}"
        for node, reason in found
        if reason is not None
    )
    return "; ".join(dict.fromkeys(reasons))


def _describe_output(decisions: Decisions, node: Node) -> str:
    consumers = decisions.graph.consumers(node.output)
    quantizers = [c.operation for c in consumers if isinstance(c.operation, FakeQuantize)]
    if quantizers:
        return describe_quantizer(quantizers[0])
    if role(node.operation) is Role.MOVE:
        return "moves codes"
    if role(node.operation) is Role.JOIN:
        return "shares the range of its inputs"
    if role(node.operation) is Role.SELECT:
        return "chooses among codes"
    follower = consumers[0].operation.name if consumers else "the output"
    return f"fused into {follower}"


def _has_floats(node: Node) -> bool:
    return any(value.is_float for value in (*node.inputs, *node.outputs))


def _is_product(node: Node) -> bool:
    return keras_class(node.operation).__name__ == "Multiply" and len(node.inputs) == 2
