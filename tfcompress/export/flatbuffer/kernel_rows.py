"""The int8 kernels of a file as rows of the report, as they were baked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfcompress.export.flatbuffer.constants import tflite_layout
from tfcompress.export.lowering.bake import BakedKernel
from tfcompress.export.report import LayerReport


def is_found_again(kernel: BakedKernel) -> bool:
    """Whether a converter finds the codes and scales of a kernel in its values by itself.

    It does for 8 bits if some weight of every output channel has the code ±127.
    """
    layout = tflite_layout(kernel.codes, kernel.keras_class)
    axis = layout.ndim - 1 if kernel.keras_class.startswith("Depthwise") else 0
    largest = np.abs(layout.astype(int)).max(tuple(i for i in range(layout.ndim) if i != axis))
    return kernel.num_bits == 8 and bool(np.all((largest == 127) | (largest == 0)))


def layer_report(kernel: BakedKernel, stored: Mapping[str, str]) -> LayerReport:
    """Returns the row of one kernel.

    Args:
        kernel: The kernel.
        stored: Layer → the type that holds it in the file; the others are float there.
    """
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
