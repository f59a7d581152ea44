"""The kernels of a file that computes in float: how it holds them, as float32, float16 or int8."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

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

_TYPE = schema.TensorType
#: How far a stored weight may be from its value, relative to the largest one of its channel.
_ROUNDING = {_TYPE.FLOAT32: 1e-5, _TYPE.FLOAT16: 2e-3, _TYPE.INT8: 6e-3}
_LARGEST_FLOAT16 = 65504.0
# A tensor whose largest weight is below this has fewer steps in float16 than in int8.
_SMALLEST_FLOAT16 = 127 * 2.0**-24


@dataclasses.dataclass(frozen=True)
class FloatKernel:
    """A kernel that the file computes with in float.

    Attributes:
        layer: Name of the Keras layer.
        keras_class: Name of its Keras class, which tells the axes.
        values: In Keras' layout; folding moves no zero.
    """

    layer: str
    keras_class: str
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class StoredKernel:
    """What a file holds of a kernel.

    Attributes:
        values: float32, float16 or int8, in the layout of the file.
        scales: Of int8 codes; empty of floats.
    """

    values: np.ndarray
    scales: np.ndarray

    @property
    def real(self) -> np.ndarray:
        """The weights, float64."""
        values = self.values.astype(np.float64)
        if not self.scales.size:
            return values
        axes = [n for n, size in enumerate(values.shape) if size == self.scales.size]
        shape = [1] * values.ndim
        if self.scales.size > 1 and axes:
            shape[axes[0]] = self.scales.size
        return values * self.scales.reshape(shape) if axes or self.scales.size == 1 else values


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


def stored_kernels(data: bytes, kernels: Sequence[FloatKernel]) -> dict[str, StoredKernel]:
    """Layer → what a file with float activations holds of its kernel.

    A kernel is found by its numbers: relative to the largest of each channel, which no folded batch
    norm changes, or all of them sorted, where the file has another layout. One that is not is the
    constant of its size that is left.

    Args:
        data: The `.tflite`, as the converter has written it.
        kernels: Its kernels.
    """
    left = list(_constants(data))
    found: dict[str, StoredKernel] = {}
    for is_same in (_same_channels, _same_numbers, _same_size):
        for kernel in kernels:
            if kernel.layer in found:
                continue
            for number, (dtype, stored) in enumerate(left):
                if stored.values.size == kernel.values.size and is_same(kernel, dtype, stored):
                    found[kernel.layer] = stored
                    if is_same is _same_size:
                        del left[number]
                    break
        taken = {id(stored) for stored in found.values()}
        left = [(dtype, stored) for dtype, stored in left if id(stored) not in taken]
    return found


def check_float16(data: bytes, kernels: Sequence[FloatKernel]) -> None:
    """Refuses a file whose weights float16 does not hold.

    Args:
        data: The `.tflite`, with float16 weights.
        kernels: Its kernels.

    Raises:
        ValueError: A weight is larger than float16's largest number, or all weights of a kernel
            are so small that int8 would hold them better.
    """
    problems = []
    for name, stored in _float16(data):
        largest = float(np.abs(stored).max(initial=0))
        if largest >= _LARGEST_FLOAT16:
            problems.append(f"{name!r} with a weight of {_LARGEST_FLOAT16:g} or more")
        elif stored.ndim > 1 and 0 < largest < _SMALLEST_FLOAT16:
            problems.append(f"{name!r} with no weight above {_SMALLEST_FLOAT16:.1e}")
    held = stored_kernels(data, kernels)
    for kernel in kernels:
        largest = float(np.abs(kernel.values).max(initial=0))
        vanishes = kernel.layer in held and not np.any(held[kernel.layer].values)
        if vanishes and 0 < largest < _SMALLEST_FLOAT16:
            problems.append(f"{kernel.layer!r}, whose largest weight is {largest:.1e}")
    if problems:
        raise ValueError(
            "Expected weights that float16 holds, batch norms folded. Received: "
            f"{'; '.join(problems)}. Leave weights=None, for float32, or take weights='dynamic', "
            "whose int8 weights have scales."
        )


def float_row(kernel: FloatKernel, stored: Mapping[str, StoredKernel]) -> LayerReport:
    """The row of a kernel that the file computes with in float.

    Args:
        kernel: The kernel.
        stored: Layer → what the file holds; the others are there as they are.
    """
    held = stored.get(kernel.layer, StoredKernel(kernel.values, np.zeros(0)))
    pruned = int(np.sum(kernel.values == 0))
    return LayerReport(
        kernel.layer,
        8 * held.values.dtype.itemsize,
        held.values.dtype.name,
        int(np.unique(held.scales).size),
        float(held.scales.min(initial=np.inf)) if held.scales.size else 0.0,
        float(held.scales.max(initial=0.0)),
        kernel.values.size,
        pruned,
        max(int(np.sum(held.values == 0)) - pruned, 0),
        int(np.unique(held.values).size),
    )


def _constants(data: bytes) -> Iterator[tuple[int, StoredKernel]]:
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            values = constant(model, tensor) if tensor.type in _ROUNDING else None
            if values is None:
                continue
            given = tensor.quantization
            scales = np.zeros(0)
            if tensor.type == _TYPE.INT8 and given is not None and given.scale is not None:
                scales = np.asarray(given.scale, np.float64)
            yield tensor.type, StoredKernel(values, scales)


def _float16(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            values = constant(model, tensor) if tensor.type == _TYPE.FLOAT16 else None
            if values is not None:
                yield tensor.name.decode("utf-8", "replace"), values.astype(np.float64)


def _same_channels(kernel: FloatKernel, dtype: int, stored: StoredKernel) -> bool:
    layout = tflite_layout(kernel.values, kernel.keras_class)
    axis = -1 if kernel.keras_class.startswith("Depthwise") else 0
    if stored.values.ndim == 0 or stored.values.shape[axis] != layout.shape[axis]:
        return False
    distance = _sizes(stored.values, axis) - _sizes(layout, axis)
    return bool(np.all(np.abs(distance) <= _ROUNDING[dtype]))


def _same_numbers(kernel: FloatKernel, dtype: int, stored: StoredKernel) -> bool:
    wanted, found = (np.sort(np.ravel(v).astype(np.float64)) for v in (kernel.values, stored.real))
    largest = np.abs(wanted).max(initial=0)
    return bool(np.all(np.abs(wanted - found) <= _ROUNDING[dtype] * largest))


def _same_size(kernel: FloatKernel, dtype: int, stored: StoredKernel) -> bool:
    return True


def _sizes(kernel: np.ndarray, axis: int) -> np.ndarray:
    """|w| of each output channel relative to its largest, which no batch norm or scale changes."""
    rows = np.abs(np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1).astype(np.float64))
    return rows / np.maximum(rows.max(1, initial=0, keepdims=True), 1e-30)


def _names(model: keras.Model) -> set[str]:
    return {kernel.layer.name for kernel in compressible_kernels(model)}
