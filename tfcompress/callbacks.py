"""Every callback for `model.fit`, gathered."""

from tfcompress.quantization.callbacks import QuantizationSchedule

__all__ = ["QuantizationSchedule"]
