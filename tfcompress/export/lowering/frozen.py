"""Numbers of layers and quantizers, read from variables before a graph is traced."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from tfcompress.model.compressed import compressed_variables
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.rescaled_input import RescaledInput


@dataclasses.dataclass(frozen=True)
class Rescaling:
    """Numbers of a `RescaledInput`, read before a graph is traced."""

    given_scale: float
    given_zero_point: int
    factor: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, quantizer: RescaledInput) -> Rescaling:
        return cls(
            float(quantizer.given_scale.numpy()),
            round(float(quantizer.given_zero_point.numpy())),
            np.asarray(quantizer.factor, np.float32),
            np.asarray(quantizer.shift.numpy(), np.float32),
        )


def effective_variables(layer: Any, call_index: int) -> list[tuple[keras.Variable, np.ndarray]]:
    """`(variable, value)` of a compressed layer in float, as its transforms make them."""
    effective = layer.effective_weights(call_index)
    transformed = {id(v): effective.get(v.name) for v in compressed_variables(layer).values()}
    values = [(v, transformed.get(id(v))) for v in layer.variables]
    return [(v, v.numpy() if value is None else np.asarray(value)) for v, value in values]


def checked_quantizer(quantizer: FakeQuantize) -> tuple[tuple[float, float], float, int]:
    """Range, scale and zero point of a quantizer."""
    if float(quantizer.active_scale()) <= 0:
        raise ValueError(
            f"Expected every quantizer to have a range and to be on. Received: {quantizer.name!r}. "
            "Pass calibration_data to quantize or export_tflite, or train the model first."
        )
    scale, zero_point = float(quantizer.scale.numpy()), round(float(quantizer.zero_point.numpy()))
    return quantizer.range, scale, zero_point
