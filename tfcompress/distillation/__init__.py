"""Knowledge distillation: a model wrapper and its losses."""

from tfcompress.distillation.callbacks import DistillationSchedule
from tfcompress.distillation.distiller import Distiller
from tfcompress.distillation.losses.attention import AttentionTransfer
from tfcompress.distillation.losses.base import DistillationLoss
from tfcompress.distillation.losses.hints import FeatureDistillation
from tfcompress.distillation.losses.logits import LogitsDistillation
from tfcompress.distillation.losses.relations import (
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
)
from tfcompress.distillation.teachers.cache import TeacherCache
from tfcompress.distillation.teachers.ensemble import TeacherEnsemble
from tfcompress.distillation.teachers.tflite import TFLiteTeacher

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
