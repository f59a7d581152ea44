"""The plan of a migrated model: quantizers where tfmot has its own, with its ranges."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from tfcompress.compat.tfmot.fake_quant import Range
from tfcompress.model.graph import Node, Value
from tfcompress.quantization.config import QuantizationConfig
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.activations import NegativePart
from tfcompress.quantization.operators.averages import ZeroPaddedAverage
from tfcompress.quantization.operators.registry import Role, role
from tfcompress.quantization.placement.planner import Planner


class RangePlanner(Planner):
    """A planner that keeps to the roundings of another tool.

    tfmot rounds between operators that LiteRT could run in one step (a dense layer with batch norm
    and the ReLU behind it), and gives the inputs of a concatenation ranges of their own. Both have
    int8 forms: a ReLU that reads codes, and codes that are rounded again.

    Args:
        model: The float model.
        config: Its schemes.
        ranges: Layer or input → the range of the tensor that it gives.

    Attributes:
        taken: Name of a quantizer → its range.
    """

    #: The other tool rounds an input and the rescaled input each.
    folds_rescaling = False

    def __init__(self, model: keras.Model, config: QuantizationConfig, ranges: Mapping[str, Range]):
        self._ranges = ranges
        self.taken: dict[str, Range] = {}
        self._used: set[str] = set()
        self._joined: dict[Node, FakeQuantize] = {}
        super().__init__(model, config)

    def known(self, value: Value) -> Range | None:
        """The range to which the other tool rounds a tensor."""
        return self._ranges.get(value.name) if value.index == 0 else None

    def fused_next(self, node: Node) -> Node | None:
        return None if self.known(node.output) is not None else super().fused_next(node)

    def tied_inputs(self, join: Node) -> list[Value]:
        tied = super().tied_inputs(join)
        if self.known(join.output) is None:
            return tied
        return [value for value in tied if self.known(value) is None]

    def join_quantizer(self, node: Node, holders: dict[Value, Value]) -> FakeQuantize | None:
        found = self.known(node.output)
        if found is None:
            return super().join_quantizer(node, holders)
        free = [v for v in self.tied_inputs(node) if self.fixed_range(v.node) is None]
        quantizer = self._codes.get(free[0]) if free else None
        if quantizer is None:
            quantizer = self._joined.setdefault(node, self._new(node))
        self._take(quantizer, node.name, found)
        return quantizer

    def place_quantizers(self) -> None:
        super().place_quantizers()
        for value, quantizer in self.quantizers.items():
            found = self.known(value)
            if found is not None:
                self._take(quantizer, value.name, found)
        for node in self.graph.nodes:
            self._derive(node)
        for node in list(self.graph.nodes):
            # Codes that were only moved are rounded again.
            moved = role(node.operation) in (Role.MOVE, Role.RESAMPLE) and self.is_quantized(node)
            if moved and self.known(node.output) is not None:
                self._round_again(node)

    def _derive(self, node: Node) -> None:
        """The range of a part of an operator of the other tool, by those of its ends."""
        quantizer = self.quantizers.get(node.output) if node.outputs else None
        if isinstance(node.operation, NegativePart):
            # The quantizer is in the graph by now.
            given = node.inputs[0].node
            before = None if given is None else self.taken.get(given.name)
            if quantizer is not None and before is not None:
                scale, zero_point = before.parameters()
                steps = max(float(zero_point) + 128.0, 1.0)
                high = node.operation.multiplier * float(scale) * steps
                self.taken.setdefault(quantizer.name, Range(0.0, high))
        elif isinstance(node.operation, ZeroPaddedAverage):
            # Zeros counted among the values make their mean smaller.
            found = self._ranges.get(self.origin[node.operation].name)
            if quantizer is not None and found is not None:
                self.taken.setdefault(quantizer.name, found)

    def _round_again(self, node: Node) -> None:
        found = self.known(node.output)
        assert found is not None
        value = node.output
        after = self.graph.sole_consumer(value)
        if after is not None and isinstance(after.operation, FakeQuantize):
            value = after.output
        quantizer = self._new(node)
        result = self.graph.insert_after(value, quantizer)
        assert result.node is not None
        result.node.kwargs = {"call_index": 1}
        self._take(quantizer, node.name, found)

    def _new(self, node: Node) -> FakeQuantize:
        scheme = self.schemes[node.operation] or self.config.scheme_for(node.operation, node.name)
        assert scheme is not None
        source = self.origin[node.operation].name
        return FakeQuantize(scheme.activations, source=source, name=f"{node.name}_quantizer")

    def _take(self, quantizer: FakeQuantize, name: str, found: Range) -> None:
        earlier = self.taken.setdefault(quantizer.name, found)
        if earlier != found:
            raise ValueError(
                f"Expected one range for {quantizer.source!r} and {name!r}, which LiteRT holds in "
                f"one range. Received: {earlier} and {found}. Quantize the float model anew with "
                "tfcompress.quantize."
            )
        if quantizer.fixed_range is None:
            self._used.add(name)

    def unused(self) -> list[str]:
        """Layers whose outputs the other tool rounds and an int8 file does not, or otherwise."""
        return sorted(set(self._ranges) - self._used)
