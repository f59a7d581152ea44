"""Every callback for `model.fit`, gathered."""

from tfcompress.distillation.callbacks import DistillationSchedule
from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.regularization_callback import Regularization
from tfcompress.pruning.threshold import ThresholdPruning
from tfcompress.quantization.callbacks import QuantizationSchedule

__all__ = [
    "DistillationSchedule",
    "Pruning",
    "QuantizationSchedule",
    "Regularization",
    "ThresholdPruning",
]
