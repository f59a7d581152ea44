"""The quantizer of one tensor: its scheme, its name, and whether it may cut off large values."""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from tfcompress.model.graph import Node, Value
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.rescaled_input import RescaledInput
from tfcompress.quantization.observers import MinMax, MovingAverage
from tfcompress.quantization.operators.registry import Role, activation_of, keeps_codes, role
from tfcompress.quantization.placement.decisions import Decisions
from tfcompress.quantization.placement.pixels import RescaledPixels
from tfcompress.quantization.schemes import ActivationScheme, Scheme


def input_scheme(scheme: ActivationScheme) -> ActivationScheme:
    """The scheme of a model's input: all values ever seen, so that no pixel is ever clipped."""
    if type(scheme.observer) is MovingAverage:
        return dataclasses.replace(scheme, observer=MinMax())
    return scheme


def unclipped_scheme(scheme: ActivationScheme) -> ActivationScheme:
    """The scheme of a tensor whose largest values decide: no estimator that leaves values out."""
    if scheme.observer.every_batch:
        return scheme
    return dataclasses.replace(scheme, observer=MovingAverage())


class QuantizerFactory:
    """Makes the quantizers of a graph that holds none yet.

    Args:
        decisions: What runs in int8, and by which scheme.
        over_steps: Tensors whose quantizers hold all steps of a sequence.
    """

    def __init__(self, decisions: Decisions, over_steps: Container[Value]):
        self.decisions, self.graph = decisions, decisions.graph
        self._over_steps = over_steps
        # Second operands of matrix products.
        self._right_operands = {
            decisions.source(node.inputs[1])
            for node in self.graph.nodes
            if role(node.operation) is Role.PRODUCT and decisions.is_quantized(node)
        }

    def make(
        self, value: Value, fixed: tuple[float, float] | None, keeps_every_value: bool
    ) -> FakeQuantize:
        """The quantizer of a tensor.

        Args:
            value: The tensor.
            fixed: Its range, where the runtime prescribes one.
            keeps_every_value: Observe a range that cuts nothing off.
        """
        chosen = self._scheme_of(value)
        scheme = chosen.activations
        if value.node is None or value in self._over_steps:
            # An average over the steps of a sequence would cut off those that reach farthest.
            scheme = input_scheme(scheme)
        elif keeps_every_value:
            scheme = unclipped_scheme(scheme)
        if fixed is not None:
            # Scale and zero point are prescribed: LiteRT refuses a softmax of others.
            scheme = dataclasses.replace(scheme, symmetric=False, num_bits=8)
        elif value in self._right_operands:
            # XNNPACK multiplies by tensors whose zero point is 0.
            scheme = dataclasses.replace(scheme, symmetric=True, num_bits=8)
        origin = self.decisions.origin[value.node.operation].name if value.node else value.name
        name = f"{value.name}_quantizer"
        if value.node is not None:
            # One per tensor: of every call of a shared layer, of every output of a call.
            tensors = [v for n in self.decisions.calls[value.node.operation] for v in n.outputs]
            index = next(i for i, v in enumerate(tensors) if v is value)
            name = f"{name}_{index}" if index else name
        gradients = None if value.node is None else chosen.gradients
        return FakeQuantize(
            scheme, fixed_range=fixed, source=origin, gradients=gradients, name=name
        )

    def make_rescaled(self, found: RescaledPixels) -> RescaledInput:
        """The quantizer of an input that rescales it too."""
        scheme = input_scheme(self._scheme(found.calls[-1]).activations)
        given = found.value
        while given.node is not None:
            given = given.node.inputs[0]
        return RescaledInput(
            scheme,
            factor=found.factor,
            offset=found.offset,
            rescaling=self.decisions.origin[found.calls[-1].operation].name,
            source=given.name,
            name=f"{given.name}_quantizer",
        )

    def keeps_every_value(self, value: Value) -> bool:
        """Whether cutting off the largest values would change the model's choice.

        So it is for an output of the model and for what feeds a softmax, unless the configuration
        names the layer.
        """
        group = [] if value.node is None else self._fused_group(value.node)
        if any(node.operation in self.decisions.named for node in group):
            return False
        pending = [value]
        while pending:
            found = pending.pop()
            readers = self.graph.consumers(found)
            if self.graph.is_output(found):
                return True
            if any(activation_of(r.operation) in ("softmax", "log_softmax") for r in readers):
                return True
            pending += [v for r in readers if keeps_codes(r.operation) for v in r.outputs]
        return False

    def _scheme_of(self, value: Value) -> Scheme:
        """Of the last call of the fused group that something names, else of the last call."""
        node, schemes = value.node, self.decisions.schemes
        if node is None or not self.decisions.is_quantized(node) or schemes[node.operation] is None:
            return self._readers_scheme(value)
        named = [
            n
            for n in self._fused_group(node)
            if n.operation in self.decisions.named and schemes[n.operation] is not None
        ]
        return self._scheme((named or [node])[0])

    def _readers_scheme(self, value: Value) -> Scheme:
        """Of the first operation that computes with a value which comes from outside int8."""
        pending = [value]
        while pending:
            for node in self.graph.consumers(pending.pop(0)):
                if self.decisions.is_quantized(node):
                    if role(node.operation) is not Role.MOVE:
                        return self._scheme(node)
                    pending.extend(node.outputs)
        raise AssertionError("only values that int8 operations read have quantizers")

    def _scheme(self, node: Node) -> Scheme:
        """The scheme of a call that runs in int8 by it."""
        scheme = self.decisions.schemes[node.operation]
        if scheme is None:
            raise AssertionError(f"{node.name} runs in int8 without a scheme")
        return scheme

    def _fused_group(self, node: Node) -> list[Node]:
        """The calls that the runtime runs in one step that ends with `node`, the last first."""
        group = [node]
        while group[-1].inputs:
            before = group[-1].inputs[0].node
            if before is None or self.decisions.fused_next(before) is not group[-1]:
                break
            group.append(before)
        return group
