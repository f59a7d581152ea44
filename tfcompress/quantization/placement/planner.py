"""The planner: decides what each layer gets and edits the graph accordingly.

It takes operations apart, finds what the runtime fuses, and puts a quantizer wherever the runtime
rounds. What it leaves behind is the graph that `quantize` builds.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import keras

from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.keras_features import check_plain_kernels
from tfcompress.model.kernels import channels_are_last
from tfcompress.model.masks import explicit_masks
from tfcompress.model.rewrite import rename_duplicates
from tfcompress.quantization.config import QuantizationConfig
from tfcompress.quantization.fake_quant.quantizers import (
    FakeQuantize,
    input_scheme,
    unclipped_scheme,
)
from tfcompress.quantization.operators.builder import Decomposition
from tfcompress.quantization.operators.integer_inputs import ToFloat
from tfcompress.quantization.operators.registry import (
    Role,
    activation_name,
    activation_of,
    keeps_codes,
    keras_class,
    operator_of,
    role,
)
from tfcompress.quantization.placement.advice import slow_operator
from tfcompress.quantization.placement.decompose import decompose
from tfcompress.quantization.placement.keep_float import KeepFloat
from tfcompress.quantization.placement.plan import (
    AS_CONFIGURED,
    TIED_PRODUCT,
    Plan,
    PlanEntry,
    activation_limits,
    describe_quantizer,
    describe_weights,
    weight_limits,
)
from tfcompress.quantization.placement.reasons import float_reason
from tfcompress.quantization.placement.shippable import check_shippable
from tfcompress.quantization.schemes import ActivationScheme, Scheme


class Planner:
    """Decides, and edits the graph accordingly.

    Attributes:
        graph: The graph of the model, decomposed, with a quantizer at every rounding and a mark
            before every call that the configuration leaves in float.
        decomposition: What was taken apart.
        schemes: Operation → its scheme, `None` for float.
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
        self.decomposition: Decomposition = decompose(
            self.graph, lambda node: self.schemes.get(node.operation, "a part") is None
        )
        self._inherit_schemes()
        self._calls = self.graph.calls_by_operation()
        self._reasons: dict[Node, str | None] = {}
        self.quantizers: dict[Value, FakeQuantize] = {}
        self._codes: dict[Value, FakeQuantize] = {}
        # Values whose quantizers hold all steps of a sequence.
        self._over_steps: set[Value] = set()
        self._place_quantizers()
        self._mark_floats()

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

    # --- which calls run in int8 -------------------------------------------------------------

    def float_reason(self, node: Node) -> str | None:
        """Why a call stays in float; `None` where it runs in int8."""
        if node not in self._reasons:
            is_configured = self.schemes.get(node.operation) is not None
            refused = self.decomposition.refused.get(node.operation)
            self._reasons[node] = refused or float_reason(node, is_configured)
        return self._reasons[node]

    def _is_float(self, node: Node) -> bool:
        is_mark = isinstance(node.operation, FakeQuantize | KeepFloat)
        return not is_mark and not self.is_quantized(node)

    def is_quantized(self, node: Node) -> bool:
        return self.float_reason(node) is None

    def _fused_next(self, node: Node) -> Node | None:
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

    # --- where the runtime rounds ------------------------------------------------------------

    def _place_quantizers(self) -> None:
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
        holders = self._shared_ranges([v for v, _ in rounded])
        unclipped = {holders.get(v, v) for v, _ in rounded if self._keeps_every_value(v)}
        for value, rounds in rounded:
            fixed = self._fixed_range(rounds)
            leader = value if fixed is not None else holders.get(value, value)
            if leader not in self.quantizers:
                keep = leader in unclipped
                self.quantizers[leader] = self._make_quantizer(leader, fixed, keep)
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
            target = self._join_quantizer(node, holders)
            for value in node.inputs:
                if target is not None and self.codes(value) is not target:
                    requantized.append((node, value, target))
        again = [(n.output, self.codes(n.inputs[0])) for n in resamples]
        for node, value, target in requantized:
            graph.insert_after(value, target, only=[node])
        for value, quantizer in again:
            if quantizer is not None:
                _computed(graph.insert_after(value, quantizer))
        for value, rounds in rounded:
            only = None
            if rounds is None:
                readers = graph.consumers(value)
                only = [r for r in readers if self._reads_codes(r, needs) or self._is_int8(r)]
                if len(only) == len(readers) and not graph.is_output(value):
                    only = None
            result = graph.insert_after(value, self.quantizers[value], only=only)
            if rounds is not None:
                _computed(result)

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
        return self._fused_next(node) is None

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

    def source(self, value: Value) -> Value:
        """The value whose codes `value` holds, looked up through calls that only move codes."""
        while value.node is not None and self.is_quantized(value.node):
            if not keeps_codes(value.node.operation):
                break
            value = value.node.inputs[0]
        return value

    def codes(self, value: Value) -> FakeQuantize | None:
        """The quantizer whose codes `value` holds, before any is in the graph."""
        return self._codes.get(self.source(value))

    def _shared_ranges(self, rounded: list[Value]) -> dict[Value, Value]:
        """Value → the one whose quantizer it uses: the inputs of a join share one range."""
        parent = {v: v for v in rounded}

        def find(v: Value) -> Value:
            while parent[v] is not v:
                v = parent[v]
            return v

        over_steps: list[Value] = []
        for part, values in self.decomposition.one_range.items():
            steps = [v for v in rounded if v.node is not None and v.node.operation is part]
            group = [*(v for v in values if v in parent), *steps]
            group = [v for v in group if self._fixed_range(v.node) is None]
            for other in group[1:]:
                parent[find(other)] = find(group[0])
            over_steps.extend(group)
        for node in self.graph.nodes:
            if not self.is_quantized(node) or role(node.operation) is not Role.JOIN:
                continue
            sources = [self.source(v) for v in node.inputs]
            free = [s for s in sources if s in parent and self._fixed_range(s.node) is None]
            for other in free[1:]:
                parent[find(other)] = find(free[0])
        self._over_steps = {find(v) for v in over_steps}
        return {v: find(v) for v in rounded}

    def _join_quantizer(self, node: Node, holders: dict[Value, Value]) -> FakeQuantize | None:
        """The quantizer of a join: of an input whose range is free, else of its first input."""
        sources = [self.source(v) for v in node.inputs]
        free = [s for s in sources if s in holders and self._fixed_range(s.node) is None]
        return self._codes.get((free or sources)[0])

    def _fixed_range(self, node: Node | None) -> tuple[float, float] | None:
        if node is None or not self.is_quantized(node) or role(node.operation) is not Role.FIXED:
            return None
        return operator_of(node.operation).fixed_range

    def _keeps_every_value(self, value: Value) -> bool:
        """Whether cutting off the largest values would change the model's choice.

        So it is for an output of the model and for what feeds a softmax, unless the configuration
        names the layer.
        """
        node = value.node
        if node is not None and any(n.operation in self.named for n in self._fused_group(node)):
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

    def _make_quantizer(
        self, value: Value, fixed: tuple[float, float] | None, keeps_every_value: bool
    ) -> FakeQuantize:
        scheme = self._activation_scheme(value)
        if value.node is None or value in self._over_steps:
            # An average over the steps of a sequence would cut off those that reach farthest.
            scheme = input_scheme(scheme)
        elif keeps_every_value:
            scheme = unclipped_scheme(scheme)
        if value in self._right_operands:
            # XNNPACK multiplies by tensors whose zero point is 0.
            scheme = dataclasses.replace(scheme, symmetric=True)
        origin = self.origin[value.node.operation].name if value.node else value.name
        name = f"{value.name}_quantizer"
        if value.node is not None:
            # One per tensor: of every call of a shared layer, of every output of a call.
            tensors = [v for n in self._calls[value.node.operation] for v in n.outputs]
            index = next(i for i, v in enumerate(tensors) if v is value)
            name = f"{name}_{index}" if index else name
        return FakeQuantize(scheme, fixed_range=fixed, source=origin, name=name)

    @functools.cached_property
    def _right_operands(self) -> set[Value]:
        """Values that are the second operand of a matrix product, and nothing of an input's."""
        found = set()
        for node in self.graph.nodes:
            if role(node.operation) is Role.PRODUCT and self.is_quantized(node):
                found.add(self.source(node.inputs[1]))
        return found

    def _activation_scheme(self, value: Value) -> ActivationScheme:
        """Of the last call of the fused group that something names, else of the last call."""
        node = value.node
        if node is None or not self.is_quantized(node) or self.schemes[node.operation] is None:
            return self._readers_scheme(value).activations
        group = self._fused_group(node)
        named = [n for n in group if n.operation in self.named and self.schemes[n.operation]]
        return self._scheme((named or [node])[0]).activations

    def _fused_group(self, node: Node) -> list[Node]:
        """The calls that the runtime runs in one step that ends with `node`, the last first."""
        group = [node]
        while group[-1].inputs:
            before = group[-1].inputs[0].node
            if before is None or self._fused_next(before) is not group[-1]:
                break
            group.append(before)
        return group

    def _scheme(self, node: Node) -> Scheme:
        """The scheme of a call that runs in int8 by it."""
        scheme = self.schemes[node.operation]
        if scheme is None:
            raise AssertionError(f"{node.name} runs in int8 without a scheme")
        return scheme

    def _readers_scheme(self, value: Value) -> Scheme:
        """Of the first operation that computes with a value which comes from outside int8."""
        pending = [value]
        while pending:
            for node in self.graph.consumers(pending.pop(0)):
                if self.is_quantized(node):
                    if role(node.operation) is not Role.MOVE:
                        return self._scheme(node)
                    pending.extend(node.outputs)
        raise AssertionError("only values that int8 operations read have quantizers")

    # --- the plan ----------------------------------------------------------------------------

    def plan(self) -> Plan:
        """The plan, one entry per operation of the given model.

        Raises:
            ValueError: A call that no file can hold, in int8 or in float.
        """
        check_shippable(n for n in self.graph.nodes if self._is_float(n))
        entries = []
        nodes_of: dict[Any, list[Node]] = {}
        for node in self.graph.nodes:
            if node.operation in self.origin:
                nodes_of.setdefault(self.origin[node.operation], []).append(node)
        for operation, path in self.originals:
            nodes = nodes_of.get(operation, [])
            parts = tuple(dict.fromkeys(node.name for node in nodes))
            entries.append(self._entry(operation, path, parts, nodes))
        return Plan(self.model.name, tuple(entries))

    def _entry(
        self, operation: Any, path: str, names: tuple[str, ...], nodes: list[Node]
    ) -> PlanEntry:
        # What computes a mask for other parts holds no floating point values; a conversion of
        # integers is exact.
        counted = [n for n in nodes if any(v.is_float for v in (*n.inputs, *n.outputs))]
        computing = [n for n in counted or nodes if not isinstance(n.operation, ToFloat)]
        found = {node: self.float_reason(node) for node in computing}
        reasons = [
            # Of several parts, the one that stays in float is named.
            r if len(names) == 1 or r == AS_CONFIGURED else f"{node.name}: {r}"
            for node, r in found.items()
            if r is not None
        ]
        scheme = self.schemes[operation]
        weights = ""
        limits: tuple[str, ...] = ()
        has_kernel = any(role(n.operation) is Role.KERNEL for n in nodes)
        if has_kernel and scheme is not None and not reasons:
            weights = describe_weights(scheme.weights)
            limits += weight_limits(scheme.weights)
        activations = "" if nodes else "returns its input"
        if nodes and not counted:
            reasons, activations = [], "no floating point values"
        if counted and not reasons:
            activations = self._describe_output(nodes[-1])
            if scheme is not None and "int" in activations:
                limits += activation_limits(scheme.activations)
        cls = keras_class(operation).__name__
        reason = "; ".join(dict.fromkeys(reasons))
        runs_in_float = any(
            self._is_float(n) and any(v.is_float for v in (*n.inputs, *n.outputs))
            for n in computing
        )
        outside = dict.fromkeys(
            slow_operator(n.operation) for n in computing if self.is_quantized(n)
        )
        slow = tuple(operator for operator in outside if operator is not None)
        has_product = any(self.is_quantized(n) and _is_product(n) for n in computing)
        has_ties = has_product and scheme is not None and scheme.activations.power_of_two
        return PlanEntry(
            path,
            cls,
            names,
            weights,
            activations,
            reason,
            limits,
            (TIED_PRODUCT,) if has_ties else (),
            runs_in_float,
            slow,
        )

    def _describe_output(self, node: Node) -> str:
        consumers = self.graph.consumers(node.output)
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


def _is_product(node: Node) -> bool:
    return keras_class(node.operation).__name__ == "Multiply" and len(node.inputs) == 2


def _computed(value: Value) -> None:
    """Notes in the graph that the tensor which a quantizer rounds is computed in int8."""
    assert value.node is not None
    value.node.kwargs = {"computed": True}


def _check_not_quantized(model: keras.Model, graph: Graph) -> None:
    for operation in graph.operations():
        if isinstance(operation, FakeQuantize):
            raise ValueError(
                f"Expected a model that is not quantized yet. Received: {model.name!r}, which "
                f"holds the quantizer {operation.name!r}. Quantize the model it came from, or take "
                "its weights into a plain model with tfcompress.strip(model)."
            )
