"""Ranges of functions of each value: no wider than what a code of the input can give.

Calibration runs in float, where a logarithm or a quotient may take values that it never takes on
the rounded values of its input.
"""

from __future__ import annotations

from collections.abc import Collection

import keras

from tfcompress.model.graph import Graph
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.elementwise import CodeTable


def limit_tables(
    model: keras.Model, quantizers: Collection[FakeQuantize]
) -> dict[FakeQuantize, tuple[float, float]]:
    """Narrows the calibrated ranges of functions to the values that their tables hold.

    Args:
        model: A quantized model whose ranges are calibrated.
        quantizers: Those that may be changed. One that rounds several tensors stays.

    Returns:
        Quantizer → its new range, of those that were narrowed.
    """
    graph, found = Graph.from_model(model), {}
    for quantizer, calls in graph.calls_by_operation().items():
        if quantizer not in quantizers or len(calls) != 1:
            continue
        before = calls[0].inputs[0].node
        if before is None or not isinstance(before.operation, CodeTable):
            continue
        call_index = before.kwargs.get("call_index", 0)
        if not before.operation.has_table(call_index):
            continue
        values = before.operation.table(call_index)
        low, high, _ = (float(number) for number in quantizer.statistics.numpy())
        narrow = max(low, float(values.min())), min(high, float(values.max()))
        if narrow != (low, high) and narrow[0] <= narrow[1]:
            quantizer.set_range(*narrow)
            found[quantizer] = narrow
    return found
