"""What a configuration means for a model: what runs in int8, and which calls run in one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.keras_features import check_plain_kernels
from tfcompress.model.kernels import channels_are_last
from tfcompress.model.masks import explicit_masks
from tfcompress.model.rewrite import rename_duplicates
from tfcompress.quantization.config import QuantizationConfig
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.builder import Decomposition
from tfcompress.quantization.operators.registry import (
    Role,
    activation_name,
    keeps_codes,
    operator_of,
    role,
)
from tfcompress.quantization.options import INT16_BITS
from tfcompress.quantization.placement.decompose import decompose
from tfcompress.quantization.placement.keep_float import KeepFloat
from tfcompress.quantization.placement.plan import AS_CONFIGURED
from tfcompress.quantization.placement.reasons import float_reason, int16_reason
from tfcompress.quantization.schemes import Scheme


class Decisions:
    """What a configuration means for a model.

    Attributes:
        model: The model.
        graph: Its graph, decomposed.
        decomposition: What was taken apart.
        originals: The operations of the model, and the path of each.
        origin: Operation of the graph → that of the model which it is, or is a part of.
        schemes: Operation → its scheme, `None` for float.
        named: Operations that the configuration names.
        is_int16: Whether activations have 16 bits.
        calls: Operation → its calls.
    """

    def __init__(self, model: keras.Model, config: QuantizationConfig):
        check_plain_kernels(model)
        self.graph = Graph.from_model(model)
        _check_not_quantized(model, self.graph)
        explicit_masks(self.graph)
        renamed = rename_duplicates(self.graph)
        self.config = config
        self.model = model
        self.originals = [
            (op, "/".join((*calls[0].path, renamed.get(op, op.name))))
            for op, calls in self.graph.calls_by_operation().items()
        ]
        config.check(self.originals)
        self.schemes: dict[Any, Scheme | None] = {
            op: config.scheme_for(op, path) for op, path in self.originals
        }
        self.named = {op for op, path in self.originals if config.names_it(op, path)}
        self.is_int16 = _has_int16(self.schemes, dict(self.originals))
        self.decomposition: Decomposition = decompose(
            self.graph,
            lambda node: self.schemes.get(node.operation, "a part") is None,
            is_int16=self.is_int16,
        )
        self._inherit_schemes()
        self.calls = self.graph.calls_by_operation()
        self._reasons: dict[Node, str | None] = {}

    def _inherit_schemes(self) -> None:
        """A part gets the scheme of its original."""
        by_name = {op.name: op for op, _ in self.originals}
        self.origin = {op: op for op, _ in self.originals}
        part_of = {p: o for o, names in self.decomposition.parts.items() for p in names}
        for operation in self.graph.operations():
            if operation not in self.origin:
                origin = by_name[part_of[operation.name]]
                self.origin[operation] = origin
                self.schemes[operation] = self.schemes[origin]
                if origin in self.named:
                    self.named.add(operation)

    def float_reason(self, node: Node) -> str | None:
        """Why a call stays in float; `None` where it runs in int8."""
        if node not in self._reasons:
            is_configured = self.schemes.get(node.operation) is not None
            refused = self.decomposition.refused.get(node.operation)
            found = refused or float_reason(node, is_configured)
            if self.is_int16 and found != AS_CONFIGURED:
                found = int16_reason(node) or found
            self._reasons[node] = found
        return self._reasons[node]

    def is_float(self, node: Node) -> bool:
        is_mark = isinstance(node.operation, FakeQuantize | KeepFloat)
        return not is_mark and not self.is_quantized(node)

    def is_quantized(self, node: Node) -> bool:
        return self.float_reason(node) is None

    def fused_next(self, node: Node) -> Node | None:
        """The call that the runtime runs in the same step as `node`, before it rounds."""
        follower = self.graph.sole_consumer(node.output) if len(node.outputs) == 1 else None
        if follower is None or not self.is_quantized(follower):
            return None
        found, operation = role(node.operation), node.operation
        linear = activation_name(getattr(operation, "activation", None)) == "linear"
        if found is None or (found is Role.KERNEL and not linear):
            return None
        if found is Role.KERNEL and operator_of(follower.operation).folds_into_kernel:
            return follower if channels_are_last(operation) else None
        is_relu = role(follower.operation) is Role.RELU
        return follower if found.fuses_relu and is_relu else None

    def fixed_range(self, node: Node | None) -> tuple[float, float] | None:
        """The range of a call's output that the runtime prescribes."""
        if node is None or not self.is_quantized(node) or role(node.operation) is not Role.FIXED:
            return None
        return operator_of(node.operation).fixed_range

    def source(self, value: Value) -> Value:
        """The value whose codes `value` holds, looked up through calls that only move codes.

        Behind a join it is the first of its inputs whose range is free, else its first input.
        """
        return self._source(value, {})

    def _source(self, value: Value, known: dict[Value, Value]) -> Value:
        path = []
        while value not in known:
            path.append(value)
            node = value.node
            if node is None or not self.is_quantized(node) or not keeps_codes(node.operation):
                known[value] = value
            elif role(node.operation) is Role.JOIN:
                sources = [self._source(v, known) for v in float_inputs(node)]
                free = (v for v in sources if self.fixed_range(v.node) is None)
                known[value] = next(free, sources[0])
            else:
                value = node.inputs[0]
        for passed in path:
            known[passed] = known[value]
        return known[value]


def float_inputs(node: Node) -> list[Value]:
    """What a call reads beside masks and indices, which hold no codes."""
    return [value for value in node.inputs if value.is_float]


def _has_int16(schemes: Mapping[Any, Scheme | None], paths: Mapping[Any, str]) -> bool:
    """Whether activations have 16 bits.

    Raises:
        ValueError: Only some of them have.
    """
    wide = [op for op, s in schemes.items() if s and s.activations.num_bits == INT16_BITS]
    others = [op for op, s in schemes.items() if s and s.activations.num_bits != INT16_BITS]
    if wide and others:
        raise ValueError(
            "Expected 16-bit activations in all layers or in none: LiteRT has no operators between "
            f"both. Received: 16 bits for {paths[wide[0]]!r} and fewer for {paths[others[0]]!r}. "
            "Leave layers in float (None) instead."
        )
    return bool(wide)


def _check_not_quantized(model: keras.Model, graph: Graph) -> None:
    for operation in graph.operations():
        if isinstance(operation, FakeQuantize):
            raise ValueError(
                f"Expected a model that is not quantized yet. Received: {model.name!r}, which "
                f"holds the quantizer {operation.name!r}. Quantize the model it came from, or take "
                "its weights into a plain model with tfcompress.strip(model)."
            )
