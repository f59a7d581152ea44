"""Every callback for `model.fit`, gathered."""

import importlib
from typing import TYPE_CHECKING, Any

from tfcompress.backup import BackupAndRestore
from tfcompress.distillation.callbacks import DistillationSchedule
from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.regularization.callback import Regularization
from tfcompress.pruning.threshold_pruning import ThresholdPruning
from tfcompress.quantization.callbacks import QuantizationSchedule
from tfcompress.quantization.guided_bits import GuidedBits
from tfcompress.quantization.oscillation.dampening import OscillationDampening
from tfcompress.quantization.oscillation.freezing import IncrementalFreezing, IterativeFreezing
from tfcompress.sharing.callbacks import Clustering

if TYPE_CHECKING:
    from tfcompress.pruning.structure.callbacks import ChannelPruning
    from tfcompress.pruning.structure.guided import GuidedWidths

__all__ = [
    "BackupAndRestore",
    "ChannelPruning",
    "Clustering",
    "DistillationSchedule",
    "GuidedBits",
    "GuidedWidths",
    "IncrementalFreezing",
    "IterativeFreezing",
    "OscillationDampening",
    "Pruning",
    "QuantizationSchedule",
    "Regularization",
    "ThresholdPruning",
]


#: What is imported when it is first used: the modules of structured pruning are large.
_LAZY = {
    "ChannelPruning": "tfcompress.pruning.structure.callbacks",
    "GuidedWidths": "tfcompress.pruning.structure.guided",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
