"""Which TensorFlow operations each call of a model becomes."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.export.flatbuffer.planned import Kind, PlannedTensor, Table
from tfcompress.export.lowering.bake import BakedKernel, bake
from tfcompress.export.lowering.dense_form import as_dense
from tfcompress.export.lowering.frozen import Rescaling, checked_quantizer, effective_variables
from tfcompress.export.lowering.marks import Marks
from tfcompress.export.lowering.values import before_mark, code_sources, is_never_negative
from tfcompress.model.compressed import compressed_variables, is_compressed
from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.inference import constant_values
from tfcompress.model.kernels import has_bias
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.rescaled_input import RescaledInput
from tfcompress.quantization.operators import forms
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.integer_inputs import ToFloat
from tfcompress.quantization.operators.registry import (
    Role,
    keras_class,
    operator_of,
    role,
)
from tfcompress.quantization.options import INT16_BITS
from tfcompress.quantization.placement.from_graph import int8_calls
from tfcompress.quantization.placement.keep_float import KeepFloat
from tfcompress.quantization.placement.stored import can_be_packed, is_pointwise

# A kernel of so many bytes is a variable in the SavedModel, which the converter makes a constant.
# A constant of the graph is copied each of the many times that the converter reads the graph: with
# 4 MB here, ResNet101 took it twice the time and three times the memory. A graph may have 2 GB.
_LARGE = 2**16


class Lowering:
    """Says, node by node, which TensorFlow ops a call becomes."""

    def __init__(self, graph: Graph, pointwise_as_dense: bool, float_io: bool, num_signatures: int):
        self.graph = graph
        self._int8 = int8_calls(graph)
        self.marks = Marks()
        self._large: dict[Node, tf.Variable] = {}
        self.large: list[tf.Variable] = []
        # Everything that is read from variables is read now, before a graph is traced.
        self._known = constant_values(graph)
        self._constants: dict[Node, tuple] = {}
        self._baked: dict[Node, BakedKernel] = {}
        # Calls of convolutions that are dense layers in the file.
        self._as_dense: set[Node] = set()
        # Call of a quantizer → range, scale and zero point.
        self._quantizers: dict[Node, tuple[tuple[float, float], float, int]] = {}
        # Call of the quantizer of an input → its Rescaling, where that is an operator of the file.
        self._rescaling: dict[Node, Rescaling] = {}
        self.variables: list[tuple[keras.Variable, np.ndarray]] = []
        # Value that depends on no input's values → its scale and zero point.
        self._constant_codes: dict[Value, tuple[float, int]] = {}
        # Call → options of its LiteRT operator that the converter does not write.
        self._options: dict[Node, tuple[tuple[str, Any], ...]] = {}
        for node in graph.nodes:
            options = operator_of(node.operation).options
            if options is not None:
                self._options[node] = tuple(options(node.operation).items())
            call_index = node.kwargs.get("call_index", 0)
            if node.output in self._known and not isinstance(node.operation, FakeQuantize):
                continue
            if is_compressed(node.operation) and role(node.operation) is not Role.KERNEL:
                self._constants[node] = tuple(effective_variables(node.operation, call_index))
            elif is_compressed(node.operation):
                kernel, bias, baked = bake(node.operation, call_index)
                self._constants[node] = kernel, bias
                if kernel.nbytes >= _LARGE:
                    # No variable can be made while a graph is traced.
                    self._large[node] = tf.Variable(kernel, trainable=False)
                if baked is not None and node in self._int8:
                    self._baked[node] = baked
                    wanted = baked.packed or (pointwise_as_dense and is_pointwise(node.operation))
                    times = num_signatures * len(graph.calls(node.operation))
                    if wanted and can_be_packed(node.operation, baked.num_bits, times):
                        self._as_dense.add(node)
                        self._baked[node] = baked.as_matrix()
            elif isinstance(node.operation, FakeQuantize):
                self._quantizers[node] = checked_quantizer(node.operation)
                if float_io and isinstance(node.operation, RescaledInput):
                    self._rescaling[node] = Rescaling.of(node.operation)
            elif (constants := operator_of(node.operation).constants) is not None:
                self._constants[node] = constants(node.operation, call_index)
            elif isinstance(node.operation, keras.Layer):
                self.variables.extend((v, v.numpy()) for v in node.operation.variables)
        self.kernels = list(self._baked.values())
        self._sources = code_sources(graph, self.is_int8)
        for value, source in self._sources.items():
            if value in self._known:
                self._constant_codes[value] = self._quantizers[source][1:]
        # Call of a quantizer that rounds a function of each value → the function's codes.
        self._tables: dict[Node, Table] = {}
        for node in graph.nodes:
            if node.output not in self._known and self._is_table(node):
                self._add_table(node)

    def _is_table(self, node: Node) -> bool:
        """Whether the file holds a call as a table of codes."""
        has_table = operator_of(node.operation).table is not None
        return has_table and self.is_int8(node) and self.holds_codes(node.inputs[0])

    def _add_table(self, node: Node) -> None:
        make = operator_of(node.operation).table
        assert make is not None
        values, kernel = make(node.operation, node.kwargs.get("call_index", 0))
        _, input_scale, input_zero_point = self._quantizers[self._sources[node.inputs[0]]]
        for reader in self.graph.consumers(node.output):
            if isinstance(reader.operation, FakeQuantize):
                _, scale, zero_point = self._quantizers[reader]
                rounded = np.asarray(reader.operation.call(tf.constant(values), training=False))
                codes = np.round(rounded / np.float32(scale)) + zero_point
                self._tables[reader] = Table(
                    codes.astype(np.int8), input_scale, input_zero_point, kernel
                )

    def is_int8(self, node: Node) -> bool:
        """Whether the plan has a call run in int8."""
        if role(node.operation) is Role.KERNEL:
            return node in self._baked
        return node in self._int8

    def holds_codes(self, value: Value) -> bool:
        """Whether a value is rounded to codes, by a quantizer or what only moves its codes."""
        return value in self._sources

    def call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        operation = node.operation
        if node.output in self._known:
            # As the model computes them: the converter would fold them without any rounding.
            return [tf.constant(self._known[value]) for value in node.outputs]
        with tf.name_scope(operation.name):
            if isinstance(operation, FakeQuantize):
                return self._quantizer(node, args[0])
            if isinstance(operation, KeepFloat):
                return args[0]
            if isinstance(operation, ToFloat) and args[0].dtype == tf.float32:
                # The input is in float for the converter, and has codes in the file.
                return args[0]
            is_int8 = self.is_int8(node)
            if not is_int8:
                args, kwargs = self._read_in_float(node, args, kwargs)
            if self._is_table(node):
                # One operator that the converter leaves as it is marks the place of the table.
                return tf.nn.elu(args[0])
            if node in self._as_dense:
                return as_dense(operation, args[0], *self._constants[node])
            form = operator_of(operation).lower
            if form is not None and node.inputs and is_int8:
                result = form(self._described(node), args[0])
                if result is not None:
                    return result
            if is_compressed(operation):
                return self._kernel(node, args, kwargs)
            return _run(operation, args, kwargs)

    def _described(self, node: Node) -> LoweredCall:
        """The description of a call that its form receives."""
        source = self._sources.get(node.inputs[0])

        def round_as_input(y: tf.Tensor) -> tf.Tensor:
            return y if source is None else self._mark(node, source, Kind.COMPUTED, y)

        return LoweredCall(
            operation=node.operation,
            call_index=node.kwargs.get("call_index", 0),
            reads_codes=source is not None,
            output_ranges=self._output_ranges(node),
            constants=self._constants.get(node, ()),
            round_as_input=round_as_input,
        )

    def _output_ranges(self, node: Node) -> tuple[tuple[float, float], ...] | None:
        """Ranges of the quantizers that read a call's output; `None` where others read it."""
        readers = self.graph.consumers(node.output)
        if not readers or self.graph.is_output(node.output):
            return None
        if not all(isinstance(r.operation, FakeQuantize) for r in readers):
            return None
        return tuple(self._quantizers[r][0] for r in readers)

    def _quantizer(self, node: Node, x: tf.Tensor) -> tf.Tensor:
        before = node.inputs[0].node
        if node in self._rescaling:
            return self._rescaled(node, x)
        if self.marks.is_constant(x):
            # The converter would round it to the mark. What reads it writes its codes.
            self._constant_codes[node.output] = self._quantizers[node][1:]
            return x
        if not node.kwargs.get("computed") or before is None or not self.is_int8(before):
            return self._held_in_range(node, self._mark(node, node, Kind.ROUNDED, x))
        kernel = self._fused_kernel(before)
        marked = self._mark(
            node,
            node,
            Kind.COMPUTED,
            x,
            kernel,
            options=self._options.get(before, ()),
            operand_grid=next(
                (self._constant_codes[v] for v in before.inputs if v in self._constant_codes), None
            ),
        )
        return self._held_in_range(node, marked)

    def _rescaled(self, node: Node, x: tf.Tensor) -> tf.Tensor:
        """Rounds pixels to their codes, and rescales these by an operator."""
        found, layer = self._rescaling[node], node.operation.source or node.name
        name = f"{layer}/{node.name}"
        pixels = PlannedTensor(
            f"{name}_pixels", layer, Kind.ROUNDED, found.given_scale, found.given_zero_point
        )
        x = self.marks.mark((node, "pixels"), pixels, x)
        x = forms.channel_affine(x, found.factor, found.shift)
        _, scale, zero_point = self._quantizers[node]
        return self.marks.mark(
            node, PlannedTensor(name, layer, Kind.COMPUTED, scale, zero_point), x
        )

    def _held_in_range(self, node: Node, x: tf.Tensor) -> tf.Tensor:
        """Codes of fewer bits behind a MAXIMUM with the lowest of them; the highest is int8's end.

        What is never negative needs none, because such a range begins at or below 0.
        """
        is_held = node in self._tables or is_never_negative(node.inputs[0])
        if not node.operation.has_few_codes or is_held:
            return x
        (low, _), scale, _ = self._quantizers[node]
        # A quarter of a step lower rounds to the same code. Of 0 the converter would make a ReLU.
        return tf.maximum(x, np.float32(low - scale / 4))

    def _mark(
        self,
        node: Node,
        quantizer: Node,
        kind: Kind,
        x: tf.Tensor,
        kernel: BakedKernel | None = None,
        **details: Any,
    ) -> tf.Tensor:
        """Marks what a call gives as codes of a quantizer's call."""
        layer = node.inputs[0].name if node is quantizer else node.name
        if isinstance(node.operation, RescaledInput):
            layer = node.operation.source or layer
        _, scale, zero_point = self._quantizers[quantizer]
        name = f"{layer}/{quantizer.name}"
        num_bits = INT16_BITS if quantizer.operation.is_int16 else 8
        details = {**details, "table": self._tables.get(node), "num_bits": num_bits}
        tensor = PlannedTensor(name, layer, kind, scale, zero_point, kernel, **details)
        return self.marks.mark(node, tensor, x)

    def _fused_kernel(self, node: Node) -> BakedKernel | None:
        """The kernel of the fused group whose last call is `node`."""
        while node not in self._baked:
            is_fused = role(node.operation) in (Role.RELU, Role.AFFINE)
            value = node.inputs[0] if is_fused else None
            if value is None or self.holds_codes(value) or value.node is None:
                return None
            node = value.node
        return self._baked[node]

    def _read_in_float(self, node: Node, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments of a call in float, those that hold codes marked as read in float."""

        def mark(leaf, x):
            leaf = before_mark(leaf) if isinstance(leaf, Value) else leaf
            if not isinstance(leaf, Value) or not self.holds_codes(leaf):
                return x
            if self.marks.is_constant(x):
                return x
            name = f"{node.name}/{leaf.name}"
            return self.marks.mark((node, leaf), PlannedTensor(name, node.name, Kind.FLOAT), x)

        return tree.map_structure(mark, (node.args, node.kwargs), (args, kwargs))

    def _kernel(self, node: Node, args: tuple, kwargs: dict) -> Any:
        layer = node.operation
        if role(layer) is not Role.KERNEL:
            mapping = [(v, tf.constant(x)) for v, x in self._constants[node]]
            with keras.StatelessScope(mapping):
                return _run(layer, args, kwargs)
        kernel, bias = self._constants[node]
        form = operator_of(layer).lower
        result = None if form is None else form(self._described(node), args[0])
        if result is not None:
            return result
        variables = compressed_variables(layer)
        mapping = [(variables["kernel"], self._constant(node, kernel))]
        if has_bias(layer):
            mapping.append((variables["bias"], tf.constant(bias)))
        with keras.StatelessScope(mapping):
            y = _run(layer, args, kwargs)
        return y if bias is None or has_bias(layer) else y + tf.constant(bias)

    def _constant(self, node: Node, kernel: np.ndarray) -> tf.Tensor:
        if node not in self._large:
            return tf.constant(kernel)
        self.large.append(self._large[node])
        return tf.convert_to_tensor(self._large[node])


def _run(operation: Any, args: tuple, kwargs: dict) -> Any:
    """Runs the `call` of an operation's Keras class in inference, as precise as its arguments."""
    terms = tree.flatten(args)
    if keras_class(operation).__name__ == "Add" and len(terms) == 2 and _broadcasts(*terms):
        # Of one sample `keras.ops.add` takes a tensor with one axis of several values for a bias,
        # and may add it along another axis of that size.
        return tf.add(*terms)
    call = keras_class(operation).call  # type: ignore[attr-defined]
    kwargs = {k: v for k, v in kwargs.items() if k != "call_index"}
    if "training" in inspect.signature(call).parameters:
        kwargs = {**kwargs, "training": False}
    return call(operation, *args, **kwargs)


def _broadcasts(first: Any, second: Any) -> bool:
    """Whether two terms are tensors of one rank."""
    ranks = {x.shape.rank if isinstance(x, tf.Tensor) else None for x in (first, second)}
    return None not in ranks and len(ranks) == 1
