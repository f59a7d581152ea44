"""Knowledge distillation: a model wrapper and its losses."""

from tfcompress.distillation.attention import AttentionTransfer
from tfcompress.distillation.cache import TeacherCache
from tfcompress.distillation.callbacks import DistillationSchedule
from tfcompress.distillation.distiller import Distiller
from tfcompress.distillation.ensemble import TeacherEnsemble
from tfcompress.distillation.hints import FeatureDistillation
from tfcompress.distillation.logits import LogitsDistillation
from tfcompress.distillation.loss import DistillationLoss
from tfcompress.distillation.relations import (
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
)
from tfcompress.distillation.tflite import TFLiteTeacher

__all__ = [
    "AttentionTransfer",
    "DistillationLoss",
    "DistillationSchedule",
    "Distiller",
    "FeatureDistillation",
    "LogitsDistillation",
    "RelationalAngle",
    "RelationalDistance",
    "SimilarityPreserving",
    "TFLiteTeacher",
    "TeacherCache",
    "TeacherEnsemble",
]
