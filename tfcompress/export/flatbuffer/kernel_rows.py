"""The kernels of a file as rows of the report: int8 ones as they were baked, and float ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import keras
import numpy as np

from tfcompress.export.lowering.bake import BakedKernel
from tfcompress.export.report import LayerReport
from tfcompress.model.kernels import compressible_kernels


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
    """Returns the kernels of plain models whose layers have none among the baked ones."""
    quantized = {kernel.layer for kernel in baked}
    return [
        FloatKernel(k.layer.name, type(k.layer).__name__, k.variable.numpy())
        for model in models
        for k in compressible_kernels(model)
        if k.layer.name not in quantized
    ]


def layer_report(kernel: BakedKernel | FloatKernel) -> LayerReport:
    """Returns the row of one kernel."""
    if isinstance(kernel, FloatKernel):
        values = kernel.values
        zeros = int(np.sum(values == 0))
        bits = 8 * values.itemsize
        return LayerReport(
            kernel.layer, bits, 0, 0.0, 0.0, values.size, zeros, 0, int(np.unique(values).size)
        )
    return LayerReport(
        kernel.layer,
        kernel.num_bits,
        int(np.unique(kernel.scale).size),
        float(kernel.scale.min()),
        float(kernel.scale.max()),
        int(kernel.codes.size),
        kernel.num_pruned,
        int(np.sum(kernel.codes == 0)) - kernel.num_pruned,
        int(np.unique(kernel.codes).size),
    )
