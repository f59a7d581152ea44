"""tfcompress: training-time compression for Keras 3 on TensorFlow.

What you trained is what you ship.
"""

from tfcompress import callbacks
from tfcompress.export import ConversionError, ExportReport, export_tflite, shared_converter
from tfcompress.model.strip import strip
from tfcompress.quantization import (
    ActivationScheme,
    LeastSquares,
    MeanStd,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
    Plan,
    QuantizationConfig,
    QuantizedModel,
    Scheme,
    WeightScheme,
    plan,
    quantize,
    reestimate_batch_norm,
)
from tfcompress.version import __version__

__all__ = [
    "ActivationScheme",
    "ConversionError",
    "ExportReport",
    "LeastSquares",
    "MeanStd",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "Plan",
    "QuantizationConfig",
    "QuantizedModel",
    "Scheme",
    "WeightScheme",
    "__version__",
    "callbacks",
    "export_tflite",
    "plan",
    "quantize",
    "reestimate_batch_norm",
    "shared_converter",
    "strip",
]
