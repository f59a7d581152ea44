"""The kernels of a file as rows of the report: int8 ones as they were baked, and float ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.flatbuffer.constants import tflite_layout
from tfcompress.export.flatbuffer.editing import constant
from tfcompress.export.lowering.bake import BakedKernel
from tfcompress.export.report import LayerReport
from tfcompress.model.kernels import compressible_kernels
from tfcompress.model.strip import strip


@dataclasses.dataclass(frozen=True)
class FloatKernel:
    """A kernel that the file holds in float.

    Attributes:
        layer: Name of the Keras layer.
        keras_class: Name of its Keras class, which tells the axes.
        values: In Keras' layout; folding moves no zero.
    """

    layer: str
    keras_class: str
    values: np.ndarray


def float_kernels(models: Iterable[keras.Model], baked: Iterable[BakedKernel]) -> list[FloatKernel]:
    """Returns the kernels, as `strip` leaves them, of the layers that have none among the baked."""
    quantized = {kernel.layer for kernel in baked}
    # Stripping builds a model anew, which a fully quantized one can do without.
    plain = [strip(model) for model in models if _names(model) - quantized]
    return [
        FloatKernel(k.layer.name, type(k.layer).__name__, k.variable.numpy())
        for model in plain
        for k in compressible_kernels(model)
        if k.layer.name not in quantized
    ]


def stored_types(data: bytes, kernels: Iterable[FloatKernel]) -> dict[str, str]:
    """Layer → the type in which a file with float activations holds its kernel.

    Args:
        data: The `.tflite`, as the converter has written it with float16 or int8 weights.
        kernels: Its kernels. Those that it holds as float32, or not as they are, are left out.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    constants = [
        (tensor, values)
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.type in (schema.TensorType.FLOAT16, schema.TensorType.INT8)
        if (values := constant(model, tensor)) is not None
    ]
    found = {}
    for kernel in kernels:
        layout = tflite_layout(kernel.values, kernel.keras_class)
        axis = layout.ndim - 1 if kernel.keras_class.startswith("Depthwise") else 0
        wanted = _sizes(layout, axis)
        for tensor, values in constants:
            if values.size == layout.size and values.shape[-1 if axis else 0] == len(wanted):
                stored = _sizes(values, values.ndim - 1 if axis else 0)
                if np.all(np.abs(stored - wanted) <= _ROUNDING[tensor.type]):
                    found[kernel.layer] = values.dtype.name
    return found


#: How far a stored weight may be from its value, relative to the largest one of its channel.
_ROUNDING = {schema.TensorType.FLOAT16: 2e-3, schema.TensorType.INT8: 6e-3}


def _sizes(kernel: np.ndarray, axis: int) -> np.ndarray:
    """|w| of each output channel relative to its largest, which no batch norm or scale changes."""
    rows = np.abs(np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1).astype(np.float64))
    return rows / np.maximum(rows.max(1, initial=0, keepdims=True), 1e-30)


def is_found_again(kernel: BakedKernel) -> bool:
    """Whether a converter finds the codes and scales of a kernel in its values by itself.

    It does for 8 bits if some weight of every output channel has the code ±127.
    """
    layout = tflite_layout(kernel.codes, kernel.keras_class)
    axis = layout.ndim - 1 if kernel.keras_class.startswith("Depthwise") else 0
    largest = np.abs(layout.astype(int)).max(tuple(i for i in range(layout.ndim) if i != axis))
    return kernel.num_bits == 8 and bool(np.all((largest == 127) | (largest == 0)))


def _names(model: keras.Model) -> set[str]:
    return {kernel.layer.name for kernel in compressible_kernels(model)}


def layer_report(kernel: BakedKernel | FloatKernel, stored: Mapping[str, str]) -> LayerReport:
    """Returns the row of one kernel.

    Args:
        kernel: The kernel.
        stored: Layer → the type that holds it in the file; the others are float there.
    """
    if isinstance(kernel, FloatKernel):
        values = kernel.values
        zeros = int(np.sum(values == 0))
        dtype = stored.get(kernel.layer, values.dtype.name)
        return LayerReport(
            kernel.layer,
            8 * np.dtype(dtype).itemsize,
            dtype,
            0,
            0.0,
            0.0,
            values.size,
            zeros,
            0,
            int(np.unique(values).size),
        )
    return LayerReport(
        kernel.layer,
        kernel.num_bits,
        stored.get(kernel.layer, "float32"),
        int(np.unique(kernel.scale).size),
        float(kernel.scale.min()),
        float(kernel.scale.max()),
        int(kernel.codes.size),
        kernel.num_pruned,
        int(np.sum(kernel.codes == 0)) - kernel.num_pruned,
        int(np.unique(kernel.codes).size),
    )
