"""The planner: puts a quantizer wherever the runtime rounds.

What it leaves behind is the graph that `quantize` builds.
"""

from __future__ import annotations

import collections
from typing import Any

import keras

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.config import QuantizationConfig
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.rescaled_input import RescaledInput
from tfcompress.quantization.operators.registry import Role, keeps_codes, role
from tfcompress.quantization.placement.decisions import Decisions, float_inputs
from tfcompress.quantization.placement.entries import plan_entries
from tfcompress.quantization.placement.keep_float import KeepFloat
from tfcompress.quantization.placement.pixels import RescaledPixels, rescaled_pixels
from tfcompress.quantization.placement.plan import AS_CONFIGURED, INT16_NOTE, Plan
from tfcompress.quantization.placement.shippable import check_shippable, check_states
from tfcompress.quantization.placement.tensor_quantizers import QuantizerFactory


class Planner(Decisions):
    """Edits the graph according to the decisions.

    Attributes:
        graph: The graph of the model, decomposed, with a quantizer at every rounding and a mark
            before every call that the configuration leaves in float.
        quantizers: Tensor → its quantizer.
        folded: Operations that a quantizer of an input computes → that quantizer.
    """

    #: Whether quantizers of inputs compute the Rescaling behind them.
    folds_rescaling = True

    def __init__(self, model: keras.Model, config: QuantizationConfig):
        super().__init__(model, config)
        self.folded: dict[Any, RescaledInput] = {}
        self.quantizers: dict[Value, FakeQuantize] = {}
        self._codes: dict[Value, FakeQuantize] = {}
        self._join_codes: dict[Node, FakeQuantize | None] = {}
        self.place_quantizers()
        self._mark_floats()

    def place_quantizers(self) -> None:
        """Puts the quantizers into the graph."""
        graph = self.graph
        needs = self._values_that_need_codes()
        rounded: list[tuple[Value, Node | None]] = []
        for value in graph.flat_inputs:
            if value in needs:
                rounded.append((value, None))
        for node in list(graph.nodes):
            if self._rounds(node):
                rounded.append((node.output, node))
            elif not self.is_quantized(node):
                rounded.extend((v, None) for v in node.outputs if v in needs)
        holders, over_steps = self._shared_ranges([v for v, _ in rounded])
        rescaled = self._folding(rounded, holders)
        rounded = [pair for pair in rounded if not _is_inside(pair[0], rescaled)]
        factory = QuantizerFactory(self, over_steps)
        unclipped = {holders.get(v, v) for v, _ in rounded if factory.keeps_every_value(v)}
        for value, rounds in rounded:
            fixed = self.fixed_range(rounds)
            leader = holders.get(value, value)
            if value in rescaled:
                self.quantizers[value] = factory.make_rescaled(rescaled[value])
            elif leader not in self.quantizers:
                keep = leader in unclipped
                self.quantizers[leader] = factory.make(leader, fixed, keep)
            self.quantizers[value] = self.quantizers[leader]
        # What each value holds, while the graph is still as it was.
        for value, _ in rounded:
            self._codes[value] = self.quantizers[value]
        joins = [n for n in graph.nodes if self.is_quantized(n) and role(n.operation) is Role.JOIN]
        resamples = [
            n for n in graph.nodes if self.is_quantized(n) and role(n.operation) is Role.RESAMPLE
        ]
        requantized = []
        for node in joins:
            target = self._join_codes[node] = self.join_quantizer(node, holders)
            for value in float_inputs(node):
                if target is not None and self.codes(value) is not target:
                    # Asked before any other quantizer stands in between.
                    requantized.append((node, value, target, self._holds_codes(value)))
        again = [(n.output, self.codes(n.inputs[0])) for n in resamples]
        calls: collections.Counter[FakeQuantize] = collections.Counter()
        for node, value, target, holds_codes in requantized:
            result = graph.insert_after(value, target, only=[node])
            if holds_codes:
                # It rounds codes, whose quantizer it finds by the number of its call.
                calls[target] += 1
                assert result.node is not None
                result.node.kwargs = {"call_index": calls[target]}
        for value, quantizer in again:
            if quantizer is not None:
                _computed(graph.insert_after(value, quantizer))
        for value, rounds in rounded:
            only = None
            if value in rescaled:
                self._fold(rescaled[value], self.quantizers[value])
                continue
            if rounds is None:
                readers = graph.consumers(value)
                only = [r for r in readers if self._reads_codes(r, needs) or self._is_int8(r)]
                # What a layer in float gives stays an output in float; an input has codes.
                stays = graph.is_output(value) and value.node is not None
                if len(only) == len(readers) and not stays:
                    only = None
            result = graph.insert_after(value, self.quantizers[value], only=only)
            if rounds is not None:
                _computed(result)

    def _folding(
        self, rounded: list[tuple[Value, Node | None]], holders: dict[Value, Value]
    ) -> dict[Value, RescaledPixels]:
        """Rescaled tensors whose codes are those of the input; none that shares its range."""
        if not self.folds_rescaling:
            return {}
        # What is resampled is rounded again, to the same codes, by a quantizer that rescales not.
        resampled = {
            self.source(node.inputs[0])
            for node in self.graph.nodes
            if self.is_quantized(node) and role(node.operation) is Role.RESAMPLE
        }
        sizes = collections.Counter(holders.values())
        makers = dict(rounded)
        return {
            found.output: found
            for found in rescaled_pixels(self)
            if makers.get(found.output) is not None
            and found.output not in resampled
            and sizes[holders[found.output]] == 1
            and self.is_quantized(found.calls[-1])
        }

    def _fold(self, found: RescaledPixels, quantizer: RescaledInput) -> None:
        """Takes the calls out that the quantizer of the input computes."""
        for node in found.calls:
            self.folded[self.origin[node.operation]] = quantizer
            self.graph.remove(node)
        self.graph.insert_after(found.value, quantizer)

    def _mark_floats(self) -> None:
        """Puts a mark before every call that the configuration leaves in float."""
        marks: dict[Any, KeepFloat] = {}
        for node in list(self.graph.nodes):
            if isinstance(node.operation, FakeQuantize):
                continue
            if self.float_reason(node) == AS_CONFIGURED:
                operation = node.operation
                policy = getattr(operation, "dtype_policy", None)
                name = f"{operation.name}_keep_float"
                mark = marks.setdefault(operation, KeepFloat(dtype=policy, name=name))
                for value in dict.fromkeys(node.inputs):
                    self.graph.insert_after(value, mark, only=[node])

    def _rounds(self, node: Node) -> bool:
        if not self.is_quantized(node) or keeps_codes(node.operation):
            return False
        return self.fused_next(node) is None

    def _values_that_need_codes(self) -> set[Value]:
        """Values that some int8 call reads, looked up through calls that only move codes."""
        needs: set[Value] = set()
        for node in reversed(self.graph.nodes):
            if self._reads_codes(node, needs):
                # Masks and indices hold no codes.
                needs.update(value for value in node.inputs if value.is_float)
        return needs

    def _is_int8(self, node: Node) -> bool:
        return self.is_quantized(node) and self.schemes[node.operation] is not None

    def _reads_codes(self, node: Node, needs: set[Value]) -> bool:
        moves = role(node.operation) is Role.MOVE
        return self.is_quantized(node) and (not moves or any(v in needs for v in node.outputs))

    def codes(self, value: Value) -> FakeQuantize | None:
        """The quantizer whose codes `value` holds, before any is in the graph."""
        node = value.node
        while node is not None and self.is_quantized(node) and keeps_codes(node.operation):
            if role(node.operation) is Role.JOIN:
                return self._join_codes.get(node)
            value = node.inputs[0]
            node = value.node
        return self._codes.get(value)

    def _shared_ranges(self, rounded: list[Value]) -> tuple[dict[Value, Value], set[Value]]:
        """Value → the one whose quantizer it uses: the inputs of a join share one range.

        Beside it, those of them whose quantizers hold all steps of a sequence.
        """
        parent = {v: v for v in rounded}

        def find(v: Value) -> Value:
            while parent[v] is not v:
                v = parent[v]
            return v

        over_steps: list[Value] = []
        for part, values in self.decomposition.one_range.items():
            steps = [v for v in rounded if v.node is not None and v.node.operation is part]
            group = [*(v for v in values if v in parent), *steps]
            free = [v for v in group if self.fixed_range(v.node) is None]
            for alike in (free, [v for v in steps if self.fixed_range(v.node) is not None]):
                for other in alike[1:]:
                    parent[find(other)] = find(alike[0])
            over_steps.extend(free)
        for node in self.graph.nodes:
            if not self.is_quantized(node) or role(node.operation) is not Role.JOIN:
                continue
            sources = self.tied_inputs(node)
            free = [s for s in sources if s in parent and self.fixed_range(s.node) is None]
            for other in free[1:]:
                parent[find(other)] = find(free[0])
        return {v: find(v) for v in rounded}, {find(v) for v in over_steps}

    def _holds_codes(self, value: Value) -> bool:
        """Whether a value holds codes that an operator or a join gave it, not those of an input."""
        node = value.node
        while node is not None and self.is_quantized(node):
            if role(node.operation) is Role.JOIN or not keeps_codes(node.operation):
                return True
            node = node.inputs[0].node
        return False

    def tied_inputs(self, join: Node) -> list[Value]:
        """The values behind the inputs of a join that share the range of its output."""
        return [self.source(v) for v in float_inputs(join)]

    def join_quantizer(self, node: Node, holders: dict[Value, Value]) -> FakeQuantize | None:
        """The quantizer of a join: of an input whose range is free, else of its first input."""
        sources = [self.source(v) for v in float_inputs(node)]
        free = [s for s in sources if s in holders and self.fixed_range(s.node) is None]
        return self._codes.get((free or sources)[0])

    def plan(self) -> Plan:
        """The plan, one entry per operation of the given model.

        Raises:
            ValueError: A call that no file can hold, in int8 or in float, or a layer with states
                that Keras does not know.
        """
        check_states(dict.fromkeys(node.operation for node in self.graph.nodes))
        check_shippable(n for n in self.graph.nodes if self.is_float(n))
        notes = (INT16_NOTE,) if self.is_int16 else ()
        return Plan(self.model.name, plan_entries(self, self.folded), notes)


def _is_inside(value: Value, rescaled: dict[Value, RescaledPixels]) -> bool:
    """Whether a value is the input of a rescaling that is folded, or one between its calls."""
    return any(
        value is found.value or any(value is node.output for node in found.calls[:-1])
        for found in rescaled.values()
    )


def _computed(value: Value) -> None:
    """Notes in the graph that the tensor which a quantizer rounds is computed in int8."""
    assert value.node is not None
    value.node.kwargs = {"computed": True}
