"""Every callback for `model.fit`, gathered."""

from tfcompress.distillation.callbacks import DistillationSchedule
from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.regularization_callback import Regularization
from tfcompress.pruning.structure.callbacks import ChannelPruning
from tfcompress.pruning.threshold import ThresholdPruning
from tfcompress.quantization.callbacks import QuantizationSchedule
from tfcompress.sharing.callbacks import Clustering

__all__ = [
    "ChannelPruning",
    "Clustering",
    "DistillationSchedule",
    "Pruning",
    "QuantizationSchedule",
    "Regularization",
    "ThresholdPruning",
]
