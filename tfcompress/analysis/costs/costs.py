"""What options cost in bytes: from files, and from the codes of each kernel."""

from __future__ import annotations

import dataclasses
import gzip
import math
import statistics
import zlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfcompress.analysis.costs.budgets import Budget, Costs, Instructions, Latency
from tfcompress.analysis.costs.instructions import instructions_of
from tfcompress.analysis.options.assignment import Assignment, layers_by_path
from tfcompress.analysis.options.changes import prune_kernel, round_kernel
from tfcompress.analysis.options.options import PRESETS
from tfcompress.analysis.options.structured import Structured
from tfcompress.export.flatbuffer.figures import file_figures, operator_macs
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.report import ExportReport
from tfcompress.export.runtime.runner import Runner
from tfcompress.model.kernels import Kernel, iterate_layers, layer_kernels
from tfcompress.model.macs import count_macs
from tfcompress.quantization.placement.stored import (
    OPERATOR_BYTES,
    can_be_packed,
    operators_of_patches,
)
from tfcompress.quantization.quantized_model import QuantizedModel
from tfcompress.quantization.schemes import Scheme, resolve

# Bytes that an operator and its tensors take under gzip, about.
_GZIP_OPERATOR_BYTES = 40
_STORED_BITS = {"int8": 8, "int4": 4, "int2": 2, "float32": 32}


class LayerBytes:
    """Bytes of each layer's kernels in the file, by bits and sparsity.

    Args:
        start: The float model with the widths and ranks in question.
        stored: `(layer, bits)` → bits that the file stores a code in.
        layers: The layers of the whole model that are asked for.
        packed: Whether convolutions of packed codes have operators that gather patches.
    """

    def __init__(
        self,
        start: Structured,
        stored: Mapping[tuple[str, int], int],
        layers: Sequence[str],
        packed: bool = False,
    ):
        self._stored, self._has_patches = stored, packed
        found = layers_by_path(start.model)
        self._kernels = {
            name: [
                (part, kernel)
                for part in start.names(name)
                for inner in iterate_layers(found[part])
                for kernel in layer_kernels(inner)
            ]
            for name in layers
        }
        self._known: dict[tuple, tuple[int, int]] = {}

    def __call__(self, layer: str, bits: int, sparsity: float = 0.0) -> tuple[int, int]:
        """`(bytes, bytes under gzip)` of the kernels of a layer."""
        key = layer, bits, sparsity
        if key not in self._known:
            parts = [self._packed(k, name, bits, sparsity) for name, k in self._kernels[layer]]
            operators = self._operators(layer, bits)
            raw = sum(map(len, parts)) + round(operators * OPERATOR_BYTES)
            compressed = sum(len(zlib.compress(part, 9)) for part in parts)
            self._known[key] = raw, compressed + round(operators * _GZIP_OPERATOR_BYTES)
        return self._known[key]

    def _operators(self, layer: str, bits: int) -> int:
        """How many operators gather patches for the packed kernels of a layer."""
        if not self._has_patches:
            return 0
        found = [
            k.layer for name, k in self._kernels[layer] if self._stored.get((name, bits), 8) < 8
        ]
        return sum(operators_of_patches(inner) for inner in found if can_be_packed(inner, bits))

    def _packed(self, kernel: Kernel, layer: str, bits: int, sparsity: float) -> bytes:
        scheme = resolve(PRESETS[bits])
        assert isinstance(scheme, Scheme)
        value = kernel.variable.numpy()
        rounded = round_kernel(kernel, scheme.weights)
        if sparsity:
            rounded = np.where(prune_kernel(value, sparsity) == 0, 0, rounded)
        axes = tuple(axis % value.ndim for axis in kernel.spec.output_axes)
        codes = np.moveaxis(_codes(rounded, axes, bits), axes, range(len(axes))).reshape(-1)
        width = self._stored.get((layer, bits), 8)
        return pack_codes(codes, width)


def pack_codes(codes: np.ndarray, width: int) -> bytes:
    """Codes of 8, 4 or 2 bits as a file holds them."""
    each = 8 // width
    padded = np.zeros(math.ceil(len(codes) / each) * each, np.int64)
    padded[: len(codes)] = codes
    lanes = (padded & (2**width - 1)).reshape(-1, each) << (width * np.arange(each))
    return lanes.sum(1).astype(np.uint8).tobytes()


def _codes(rounded: np.ndarray, axes: tuple[int, ...], bits: int) -> np.ndarray:
    """Whole numbers of a rounded kernel: in units of its smallest step per channel."""
    others = tuple(axis for axis in range(rounded.ndim) if axis not in axes)
    largest = np.abs(rounded).max(others, keepdims=True)
    limit = 2 ** (bits - 1) - 1 if bits > 2 else 2
    step = np.where(largest > 0, largest / limit, 1.0)
    return np.clip(np.rint(rounded / step), -128, 127).astype(np.int64)


def stored_bits(reports: Mapping[int, ExportReport], model: QuantizedModel) -> dict:
    """`(layer, bits)` → bits that a file stores a code in, from a file of every number of bits.

    Args:
        reports: Bits → report of the file in which all layers have so many.
        model: A quantized model of the same layers.
    """
    outer = {part: entry.name for entry in model.plan or () for part in entry.parts}
    return {
        (outer.get(layer.name, layer.name), bits): _STORED_BITS.get(layer.stored, 8)
        for bits, report in reports.items()
        for layer in report.layers
    }


def file_costs(model: keras.Model, data: bytes, budgets: Sequence[Budget]) -> Costs:
    """What a model and its file cost.

    Args:
        model: The float model with the widths and ranks of the file.
        data: The file.
        budgets: Whether a file is timed, and the CPUs whose instructions are counted.

    Raises:
        ValueError: Instructions of a file that has operators without known ones.
    """
    summary = inspect_tflite(data)
    is_timed, cpus = measured_for(budgets)
    return Costs(
        len(data),
        len(gzip.compress(data, 9)),
        count_macs(model),
        sum(math.prod(v.shape) for v in model.weights),
        file_figures(summary).activation_bytes,
        float(statistics.median(Runner(data).time(100))) if is_timed else None,
        {cpu: instructions_of(summary, cpu) for cpu in cpus},
        operator_macs(summary),
    )


def measured_for(budgets: Sequence[Budget]) -> tuple[bool, list[str]]:
    """What costs have for some budgets alone: whether a file is timed, and the CPUs."""
    is_timed = any(isinstance(b, Latency) and b.table is None for b in budgets)
    return is_timed, sorted({b.cpu for b in budgets if isinstance(b, Instructions)})


def predicted_costs(
    base: Costs, assignment: Assignment, sizes: LayerBytes, layers: Sequence[str]
) -> Costs:
    """Costs of an assignment from those of the file with the same layers in int8.

    Args:
        base: Costs of that file.
        assignment: The assignment.
        sizes: Bytes of kernels at these widths and ranks.
        layers: The layers whose bits and sparsity may differ.
    """
    raw, packed = base.num_bytes, base.gzip_bytes
    for name in layers:
        new = sizes(name, assignment.bits.get(name, 8), assignment.sparsity.get(name, 0.0))
        old = sizes(name, 8)
        raw, packed = raw + new[0] - old[0], packed + new[1] - old[1]
    return dataclasses.replace(base, num_bytes=raw, gzip_bytes=packed)
