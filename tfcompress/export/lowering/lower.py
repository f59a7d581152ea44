"""From a quantized model to the TensorFlow function that the converter gets.

Kernels and biases are constants on their grids, batch norm is folded, only the fake-quant of
activations is left, and operations have the form that the runtime runs best. Everything is
computed in float32 and with batch 1, whatever policy the model was trained with.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.export.lowering.bake import BakedKernel, bake
from tfcompress.model.compressed import compressed_variables, is_compressed
from tfcompress.model.graph import Graph, Node, Value
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.forms import LoweredCall
from tfcompress.quantization.operators.registry import (
    Role,
    keeps_codes,
    keras_class,
    operator_of,
    role,
)


@dataclasses.dataclass
class Lowered:
    """What lowering one model gives.

    Attributes:
        function: `function(*inputs) -> {output name: tensor}`, to be traced with batch 1.
        specs: Its inputs.
        kernels: What every int8 kernel must look like in the file.
        scales: Those of its quantizers.
        float_outputs: Names of outputs that no quantizer gives.
        float_inputs: Names of inputs that no quantizer reads.
    """

    function: Any
    specs: list[tf.TensorSpec]
    kernels: list[BakedKernel] = dataclasses.field(default_factory=list)
    scales: list[float] = dataclasses.field(default_factory=list)
    float_outputs: list[str] = dataclasses.field(default_factory=list)
    float_inputs: list[str] = dataclasses.field(default_factory=list)


def lower(model: keras.Model, output_names: list[str]) -> Lowered:
    """Lowers a quantized (or plain float) functional model.

    Args:
        model: The model.
        output_names: A name for every flat output.

    Raises:
        ValueError: An input with an unknown dimension other than the batch.
    """
    graph = Graph.from_model(model)
    specs = []
    for value in graph.flat_inputs:
        if None in value.shape[1:]:
            raise ValueError(
                f"Expected inputs of known shape. Received: {value.spec.name!r} of shape "
                f"{value.shape}. Build the model with keras.Input of the size that it will run at."
            )
        shape = (1, *value.shape[1:])
        specs.append(tf.TensorSpec(shape, value.spec.dtype, name=value.spec.name))
    walker = _Lowering(graph)

    def function(*inputs):
        feed = dict(zip(graph.flat_inputs, inputs, strict=True))
        # Variables read as constants, so that the graph holds no state.
        with keras.StatelessScope([(v, tf.constant(x)) for v, x in walker.variables]):
            outputs = graph.run(feed, walker.call)
        flat = tree.flatten(outputs)
        return {
            name: tf.identity(tf.cast(y, tf.float32) if y.dtype.is_floating else y, name=name)
            for name, y in zip(output_names, flat, strict=True)
        }

    lowered = Lowered(function, specs, walker.kernels, walker.scales)
    for name, value in zip(output_names, graph.flat_outputs, strict=True):
        if not walker.holds_codes(value):
            lowered.float_outputs.append(name)
    for value in graph.flat_inputs:
        readers = graph.consumers(value)
        if not readers or not all(isinstance(r.operation, FakeQuantize) for r in readers):
            lowered.float_inputs.append(value.spec.name)
    return lowered


class _Lowering:
    """Says, node by node, which TensorFlow ops a call becomes."""

    def __init__(self, graph: Graph):
        self.graph = graph
        # Everything that is read from variables is read now, before a graph is traced.
        self._constants: dict[Node, tuple] = {}
        self.kernels: list[BakedKernel] = []
        self.scales: list[float] = []
        self.variables: list[tuple[keras.Variable, np.ndarray]] = []
        for node in graph.nodes:
            call_index = node.kwargs.get("call_index", 0)
            if is_compressed(node.operation) and role(node.operation) is not Role.KERNEL:
                self._constants[node] = tuple(_effective_variables(node.operation, call_index))
            elif is_compressed(node.operation):
                kernel, bias, baked = bake(node.operation, call_index)
                self._constants[node] = kernel, bias
                self.kernels.extend([baked] if baked is not None else [])
            elif isinstance(node.operation, FakeQuantize):
                self._constants[node] = _checked_range(node.operation)
                self.scales.append(float(node.operation.scale.numpy()))
            elif (constants := operator_of(node.operation).constants) is not None:
                self._constants[node] = constants(node.operation, call_index)
            elif isinstance(node.operation, keras.Layer):
                self.variables.extend((v, v.numpy()) for v in node.operation.variables)
        self._sources = _code_sources(graph)

    def holds_codes(self, value: Value) -> bool:
        """Whether a value is rounded to codes, by a quantizer or what only moves its codes."""
        return value in self._sources

    def call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        operation = node.operation
        with tf.name_scope(operation.name):
            if isinstance(operation, FakeQuantize):
                return self._quantizer(node, args[0])
            if is_compressed(operation):
                return self._kernel(node, args, kwargs)
            form = operator_of(operation).lower
            if form is not None and node.inputs:
                result = form(self._described(node), args[0])
                if result is not None:
                    return result
            return _run(operation, args, kwargs)

    def _described(self, node: Node) -> LoweredCall:
        """The description of a call that its form receives."""
        source = self._sources.get(node.inputs[0])

        def round_as_input(y: tf.Tensor) -> tf.Tensor:
            return y if source is None else self._round(source, y)

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
        return tuple(self._constants[r] for r in readers)

    def _quantizer(self, node: Node, x: tf.Tensor) -> tf.Tensor:
        """Rounds, unless the converter will do it by itself: two fake-quant ops in a row make it
        drop one of them without a word. That is so where a quantizer reads codes (before a join).
        """
        before = node.inputs[0].node
        resampled = before is not None and role(before.operation) is Role.RESAMPLE
        if self.holds_codes(node.inputs[0]) and not resampled:
            return x
        return self._round(node, x)

    def _round(self, node: Node, x: tf.Tensor) -> tf.Tensor:
        """Fake-quant with the range of a quantizer's call."""
        low, high = self._constants[node]
        scheme = node.operation.scheme
        return tf.quantization.fake_quant_with_min_max_args(
            x, low, high, num_bits=scheme.num_bits, narrow_range=scheme.narrow_range
        )

    def _kernel(self, node: Node, args: tuple, kwargs: dict) -> Any:
        layer = node.operation
        if role(layer) is not Role.KERNEL:
            mapping = [(v, tf.constant(x)) for v, x in self._constants[node]]
            with keras.StatelessScope(mapping):
                return _run(layer, args, kwargs)
        kernel, bias = self._constants[node]
        variables = compressed_variables(layer)
        mapping = [(variables["kernel"], tf.constant(kernel))]
        if layer.use_bias:
            mapping.append((variables["bias"], tf.constant(bias)))
        with keras.StatelessScope(mapping):
            y = _run(layer, args, kwargs)
        return y if bias is None or layer.use_bias else y + tf.constant(bias)


def _effective_variables(layer: Any, call_index: int) -> list[tuple[keras.Variable, np.ndarray]]:
    """`(variable, value)` of a compressed layer in float, as its transforms make them."""
    effective = layer.effective_weights(call_index)
    transformed = {id(v): effective.get(v.name) for v in compressed_variables(layer).values()}
    values = [(v, transformed.get(id(v))) for v in layer.variables]
    return [(v, v.numpy() if value is None else np.asarray(value)) for v, value in values]


def _code_sources(graph: Graph) -> dict[Value, Node]:
    """Value that holds codes → the call of the quantizer whose codes they are."""
    sources: dict[Value, Node] = {}
    for node in graph.nodes:
        source: Node | None = None
        if isinstance(node.operation, FakeQuantize):
            source = node
        elif node.inputs and keeps_codes(node.operation):
            found = [sources.get(value) for value in node.inputs]
            # A join that is left in float may join codes of several ranges.
            is_join = role(node.operation) is Role.JOIN
            quantizers = {id(s.operation) if s is not None else None for s in found}
            same = None not in quantizers and len(quantizers) == 1
            source = found[0] if same or not is_join else None
        if source is not None:
            sources.update(dict.fromkeys(node.outputs, source))
    return sources


def _run(operation: Any, args: tuple, kwargs: dict) -> Any:
    """Runs the `call` of an operation's Keras class in inference, as precise as its arguments."""
    call = keras_class(operation).call  # type: ignore[attr-defined]
    kwargs = {k: v for k, v in kwargs.items() if k != "call_index"}
    if "training" in inspect.signature(call).parameters:
        kwargs = {**kwargs, "training": False}
    return call(operation, *args, **kwargs)


def _checked_range(quantizer: FakeQuantize) -> tuple[float, float]:
    if float(quantizer.active_scale()) <= 0:
        raise ValueError(
            f"Expected every quantizer to have a range and to be on. Received: {quantizer.name!r}. "
            "Pass calibration_data to quantize or export_tflite, or train the model first."
        )
    return quantizer.range
