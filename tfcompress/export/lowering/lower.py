"""From a quantized model to the TensorFlow function that the converter gets.

Kernels and biases are constants on their grids, batch norm is folded, only the fake-quant of
activations is left, and operations stand in the form that the runtime runs best. Everything is
computed in float32 and with batch 1, whatever policy the model was trained with.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, tree

from tfcompress.export.lowering import forms
from tfcompress.export.lowering.bake import BakedKernel, bake
from tfcompress.model.compressed import Compressed, compressed_variables, is_compressed
from tfcompress.model.graph import Graph, Node
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.channel_affine import FoldedAffine
from tfcompress.quantization.operators.parts import (
    BorderCorrection,
    NegativePart,
    NegativeSlope,
    ZeroPaddedAverage,
)
from tfcompress.quantization.operators.roles import Role, activation_of, keras_class, role


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
        preprocessing: What is folded behind an input, for whoever feeds the file.
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
            if is_compressed(node.operation):
                kernel, bias, baked = bake(node.operation, call_index)
                self._constants[node] = kernel, bias
                self.kernels.extend([baked] if baked is not None else [])
            elif isinstance(node.operation, FoldedAffine):
                fold = node.operation.fold(call_index)
                self._constants[node] = np.asarray(fold.factor), np.asarray(fold.addend)
            elif isinstance(node.operation, FakeQuantize):
                self._constants[node] = _checked_range(node.operation)
                self.scales.append(float(node.operation.scale.numpy()))
            elif isinstance(node.operation, NegativeSlope):
                self._constants[node] = (np.asarray(node.operation.slope()),)
            elif isinstance(node.operation, keras.Layer):
                self.variables.extend((v, v.numpy()) for v in node.operation.variables)
        self._skip = {id(n) for n in graph.nodes if self._is_requantization(n)}

    def holds_codes(self, value) -> bool:
        """Whether a value is rounded to codes, looked up through calls that only move them."""
        node = value.node
        while node is not None and not isinstance(node.operation, FakeQuantize):
            found = role(node.operation)
            if found not in (Role.MOVE, Role.JOIN, Role.RESAMPLE):
                return False
            if found is Role.JOIN and not self._shares_range(node):
                return False
            node = node.inputs[0].node
        return node is not None

    def _shares_range(self, join: Node) -> bool:
        """Whether a join joins codes of one range: one that is left in float may not."""
        if not all(self.holds_codes(v) for v in join.inputs):
            return False
        return len({id(self._source(v).operation) for v in join.inputs}) == 1

    def _source(self, value) -> Node:
        """The call of the quantizer whose codes a value holds."""
        node = value.node
        while not isinstance(node.operation, FakeQuantize):
            node = node.inputs[0].node
        return node

    def _is_requantization(self, node: Node) -> bool:
        """A quantizer behind another one, in front of a join: the converter adds it by itself.

        Two fake-quant ops in a row would make it drop one of them without a word.
        """
        return isinstance(node.operation, FakeQuantize) and self.holds_codes(node.inputs[0])

    def call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        operation = node.operation
        with tf.name_scope(operation.name):
            if isinstance(operation, FakeQuantize):
                return self._quantizer(node, args[0])
            if is_compressed(operation):
                return self._kernel(node, args, kwargs)
            if isinstance(operation, FoldedAffine):
                # Folded into the kernel before it, or a depthwise convolution of its own.
                is_folded = operation.is_folded(kwargs.get("call_index", 0))
                constants = self._constants[node]
                return args[0] if is_folded else forms.channel_affine(args[0], *constants)
            form = self._form(node, args)
            if form is not None:
                return form
            return _run(operation, args, kwargs)

    def _quantizer(self, node: Node, x):
        before = node.inputs[0].node
        resampled = before is not None and role(before.operation) is Role.RESAMPLE
        if id(node) in self._skip and not resampled:
            return x
        return self._round(node, x)

    def _round(self, node: Node, x):
        """Fake-quant with the range of a quantizer's call."""
        low, high = self._constants[node]
        scheme = node.operation.scheme
        return tf.quantization.fake_quant_with_min_max_args(
            x, low, high, num_bits=scheme.num_bits, narrow_range=scheme.narrow_range
        )

    def _kernel(self, node: Node, args: tuple, kwargs: dict):
        layer: Compressed = node.operation
        kernel, bias = self._constants[node]
        variables = compressed_variables(layer)
        mapping = [(variables["kernel"], tf.constant(kernel))]
        if layer.use_bias:
            mapping.append((variables["bias"], tf.constant(bias)))
        with keras.StatelessScope(mapping):
            y = _run(layer, args, kwargs)
        return y if bias is None or layer.use_bias else y + tf.constant(bias)

    # --- forms -------------------------------------------------------------------------------

    def _form(self, node: Node, args: tuple):
        """The replacement form of a call, `None` where it stays as it is."""
        operation = node.operation
        if not node.inputs:
            return None
        if not self.holds_codes(node.inputs[0]):
            # Fused into the operation before it.
            is_relu = activation_of(operation) == "relu" and self._ends_at_ceiling(node)
            return tf.nn.relu(args[0]) if is_relu else None
        x = args[0]
        if isinstance(operation, NegativePart):
            return forms.channel_affine(x, np.float32(-operation.factor), None, "relu")
        if isinstance(operation, NegativeSlope):
            return _negative_slope(operation, x, *self._constants[node])
        if role(operation) is Role.RELU and self._ends_at_ceiling(node):
            return forms.identity_relu(x, activation_of(operation))
        if isinstance(operation, layers.AveragePooling1D | layers.AveragePooling2D):
            return _average_pool(operation, x, operation.padding)
        if isinstance(operation, ZeroPaddedAverage):
            return _average_pool(operation, x, "same")
        if isinstance(operation, BorderCorrection):
            factors = operation.factors()
            return forms.multiply_constant(x, factors if len(x.shape) == 4 else factors[:, 0])
        if isinstance(operation, layers.MaxPooling2D):
            is_plain = tuple(operation.pool_size) == (1, 1) and len(set(operation.strides)) == 1
            # It computes, though nothing changes: without the fake-quant it would stay float.
            y = forms.subsample(x, operation.strides) if is_plain else None
            return y if y is None else self._round(self._source(node.inputs[0]), y)
        if isinstance(operation, layers.UpSampling2D) and operation.interpolation == "nearest":
            is_square = len(set(operation.size)) == 1
            return forms.repeat_pixels(x, operation.size[0]) if is_square else None
        return None

    def _ends_at_ceiling(self, node: Node) -> bool:
        """Whether a ReLU's ceiling is none, 6, or cut off by the range that it is rounded to."""
        ceiling = getattr(node.operation, "max_value", None)
        if ceiling is None or ceiling == 6:
            return True
        readers = self.graph.consumers(node.output)
        is_rounded = bool(readers) and not self.graph.is_output(node.output)
        return is_rounded and all(
            isinstance(r.operation, FakeQuantize) and self._constants[r][1] <= ceiling * (1 + 1e-6)
            for r in readers
        )


def _run(operation, args: tuple, kwargs: dict):
    """Runs the `call` of an operation's Keras class in inference, as precise as its arguments."""
    call = keras_class(operation).call
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


def _negative_slope(layer: NegativeSlope, x, slope: np.ndarray):
    if layer.per_channel:
        return forms.channel_affine(x, -slope.ravel(), None)
    return forms.multiply_constant(x, -slope[None])


def _average_pool(layer, x, padding: str):
    pool, strides = tuple(layer.pool_size), tuple(layer.strides)
    if len(x.shape) == 4:
        return forms.average_pool(x, pool, strides, padding)
    image = tf.expand_dims(x, 1)
    # A sequence's window has one number, unless the layer has written it as an image's.
    pool, strides = (1, pool[-1]), (1, strides[-1])
    return tf.squeeze(forms.average_pool(image, pool, strides, padding), 1)
