"""The kernels of a `.tflite` as real values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tfcompress.export.files import read_tflite
from tfcompress.export.flatbuffer.inspect import inspect_tflite, parse_tflite
from tfcompress.export.flatbuffer.unpack import unpack

_KERNEL_OPS = ("CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


@dataclasses.dataclass(frozen=True, eq=False)
class FileKernel:
    """One kernel.

    Attributes:
        name: What it comes from, as far as the names in the file tell.
        values: Its real values.
    """

    name: str
    values: np.ndarray


def kernels(data: bytes) -> list[FileKernel]:
    """The kernels of convolutions and dense layers, in running order, each buffer once."""
    summary, model = inspect_tflite(data), parse_tflite(read_tflite(data))
    found, seen = [], set()
    for op in summary.ops:
        if op.name not in _KERNEL_OPS or op.inputs[1] < 0:
            continue
        tensor = summary.tensor(op.inputs[1], op.subgraph)
        if not tensor.is_constant or tensor.buffer in seen:
            continue
        seen.add(tensor.buffer)
        codes = unpack(model.buffers[tensor.buffer].data, tensor.dtype, math.prod(tensor.shape))
        if codes is None or codes.size != math.prod(tensor.shape):
            continue
        values = codes.astype(np.float32).reshape(tensor.shape)
        if tensor.scales:
            shape = [1] * values.ndim
            if tensor.quantized_axis is not None:
                shape[tensor.quantized_axis] = -1
            scales = np.reshape(np.asarray(tensor.scales, np.float32), shape)
            zeros = np.reshape(np.asarray(tensor.zero_points or (0,), np.float32), shape)
            values = (values - zeros) * scales
        found.append(FileKernel(op.layer.rsplit("/", 1)[-1] or op.name, values))
    return found


def matching(wanted: Sequence[FileKernel], others: Sequence[FileKernel]) -> list[FileKernel | None]:
    """The kernel of another file for each, by name and size, else by size in running order."""
    left, found = list(others), []
    names = {(k.name, k.values.size) for k in others}
    for own in wanted:
        is_named = (own.name, own.values.size) in names
        match = next(
            (
                k
                for k in left
                if k.values.size == own.values.size and (k.name == own.name or not is_named)
            ),
            None,
        )
        if match is not None:
            left.remove(match)
        found.append(match)
    return found
