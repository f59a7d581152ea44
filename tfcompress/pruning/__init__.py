"""Sparsity during an ordinary `fit`: criteria, patterns, schedules, masks, regularization."""

from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.criteria import Criterion, get_criterion, register_criterion
from tfcompress.pruning.guided import MetricGuided
from tfcompress.pruning.patterns import Block, Channels, NOfM, Pattern, Unstructured
from tfcompress.pruning.pruner import Pruner
from tfcompress.pruning.regularization_callback import Regularization
from tfcompress.pruning.report import PruningReport
from tfcompress.pruning.schedules import (
    ConstantSparsity,
    CosineSchedule,
    PolynomialDecay,
    PruningSchedule,
)
from tfcompress.pruning.sparse_training import SET, RigL
from tfcompress.pruning.surgery import DynamicNetworkSurgery
from tfcompress.pruning.threshold import ThresholdPruning

__all__ = [
    "SET",
    "Block",
    "Channels",
    "ConstantSparsity",
    "CosineSchedule",
    "Criterion",
    "DynamicNetworkSurgery",
    "MetricGuided",
    "NOfM",
    "Pattern",
    "PolynomialDecay",
    "Pruner",
    "Pruning",
    "PruningReport",
    "PruningSchedule",
    "Regularization",
    "RigL",
    "ThresholdPruning",
    "Unstructured",
    "get_criterion",
    "register_criterion",
]
