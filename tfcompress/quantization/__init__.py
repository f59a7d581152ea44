"""Quantization-aware training: schemes, observers, quantizers, and what LiteRT does at each op."""

from tfcompress.quantization.callbacks import QuantizationSchedule, reestimate_batch_norm
from tfcompress.quantization.config import QuantizationConfig
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.observers import (
    LeastSquares,
    MeanStd,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
)
from tfcompress.quantization.operators.custom import register_operator
from tfcompress.quantization.placement.plan import Plan, PlanEntry
from tfcompress.quantization.quantize import plan, quantize
from tfcompress.quantization.quantized_model import QuantizedModel
from tfcompress.quantization.schemes import ActivationScheme, Scheme, WeightScheme

__all__ = [
    "ActivationScheme",
    "FakeQuantize",
    "LeastSquares",
    "MeanStd",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "Plan",
    "PlanEntry",
    "QuantizationConfig",
    "QuantizationSchedule",
    "QuantizedModel",
    "Scheme",
    "WeightScheme",
    "plan",
    "quantize",
    "reestimate_batch_norm",
    "register_operator",
]
