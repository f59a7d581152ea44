"""From a quantized model to the TensorFlow function that the converter gets.

Kernels and biases are constants on their grids, batch norm is folded, only the fake-quant of
activations is left, and operations have the form that the runtime runs best. Everything is
computed in float32 and with batch 1, whatever policy the model was trained with.
"""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfcompress.export.flatbuffer.planned import PlannedTensor
from tfcompress.export.lowering.bake import BakedKernel
from tfcompress.export.lowering.calls import Lowering
from tfcompress.export.lowering.values import rescaled_inputs
from tfcompress.model.graph import Graph
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize


@dataclasses.dataclass
class Lowered:
    """What lowering one model gives.

    Attributes:
        function: `function(*inputs) -> {output name: tensor}`, to be traced with batch 1.
        specs: Its inputs.
        kernels: What every int8 kernel must look like in the file.
        planned: The tensors that the plan gives codes, known once the function is traced.
        float_outputs: Names of outputs that no quantizer gives.
        float_inputs: Names of inputs that no quantizer reads.
        input_codes: Name of an input that is rescaled → scale and zero point of its int8 codes for
            the values that the Keras model takes.
        uint8_inputs: Names of those that are uint8 in the Keras model.
        variables: What the function reads large kernels from, once it is traced.
    """

    function: Any
    specs: list[tf.TensorSpec]
    kernels: list[BakedKernel] = dataclasses.field(default_factory=list)
    planned: list[PlannedTensor] = dataclasses.field(default_factory=list)
    float_outputs: list[str] = dataclasses.field(default_factory=list)
    float_inputs: list[str] = dataclasses.field(default_factory=list)
    input_codes: dict[str, tuple[float, int]] = dataclasses.field(default_factory=dict)
    uint8_inputs: list[str] = dataclasses.field(default_factory=list)
    variables: list[tf.Variable] = dataclasses.field(default_factory=list)

    def release(self) -> None:
        """Gives back the memory of the function's constants: it cannot be called any more."""
        is_large = bool(self.variables)
        self.function, self.variables = None, []
        if is_large:
            # They are held by cycles.
            gc.collect()


def lower(
    model: keras.Model,
    output_names: list[str],
    *,
    pointwise_as_dense: bool = False,
    float_io: bool = False,
    num_signatures: int = 1,
) -> Lowered:
    """Lowers a quantized (or plain float) functional model.

    Args:
        model: The model.
        output_names: A name for every flat output.
        pointwise_as_dense: Whether pointwise convolutions of few bits become FULLY_CONNECTED.
        float_io: Whether the inputs of the file are float: its QUANTIZE rounds them as the pixels
            that they are, and an operator rescales these.
        num_signatures: Of the file; each has operators of its own, and all share the kernels.

    Raises:
        ValueError: An input with an unknown dimension other than the batch.
    """
    graph = Graph.from_model(model)
    specs = []
    rescaled = {} if float_io else rescaled_inputs(graph)
    for value in graph.flat_inputs:
        if None in value.shape[1:]:
            raise ValueError(
                f"Expected inputs of known shape. Received: {value.spec.name!r} of shape "
                f"{value.shape}. Name the sizes that it will run at, without the batch axis: "
                "export_tflite(..., input_shapes={'serving_default': (...)})."
            )
        shape = (1, *value.shape[1:])
        dtype = "float32" if value in rescaled else value.spec.dtype
        specs.append(tf.TensorSpec(shape, dtype, name=value.spec.name))
    walker = Lowering(graph, pointwise_as_dense, float_io, num_signatures)

    def function(*inputs):
        feed = dict(zip(graph.flat_inputs, inputs, strict=True))
        # Variables read as constants, so that the graph holds no state.
        with keras.StatelessScope([(v, tf.constant(x)) for v, x in walker.variables]):
            outputs = graph.run(feed, walker.call)
        flat = tree.flatten(outputs)
        walker.marks.free_unread(flat)
        return {
            name: tf.identity(tf.cast(y, tf.float32) if y.dtype.is_floating else y, name=name)
            for name, y in zip(output_names, flat, strict=True)
        }

    lowered = Lowered(function, specs, walker.kernels, walker.marks.planned)
    lowered.variables = walker.large
    for name, value in zip(output_names, graph.flat_outputs, strict=True):
        if not walker.holds_codes(value):
            lowered.float_outputs.append(name)
    for value in graph.flat_inputs:
        readers = graph.consumers(value)
        if value in rescaled:
            quantizer = rescaled[value]
            scale, zero_point = quantizer.given_scale, quantizer.given_zero_point
            codes = float(scale.numpy()), round(float(zero_point.numpy()))
            lowered.input_codes[value.spec.name] = codes
            if value.spec.dtype == "uint8":
                lowered.uint8_inputs.append(value.spec.name)
            continue
        if not readers or not all(isinstance(r.operation, FakeQuantize) for r in readers):
            lowered.float_inputs.append(value.spec.name)
    return lowered
