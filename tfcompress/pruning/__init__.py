"""Sparsity during an ordinary `fit`: criteria, patterns, schedules, masks, regularization."""

from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.criteria.options import ScoringOptions
from tfcompress.pruning.criteria.registry import Criterion, get_criterion, register_criterion
from tfcompress.pruning.masks.patterns import Block, Channels, NOfM, Pattern, Unstructured
from tfcompress.pruning.methods.guided import MetricGuided
from tfcompress.pruning.methods.method import Method
from tfcompress.pruning.methods.run import PruningRun
from tfcompress.pruning.methods.sparse_training import SET, RigL
from tfcompress.pruning.methods.surgery import DynamicNetworkSurgery
from tfcompress.pruning.pruner import Pruner
from tfcompress.pruning.regularization.callback import Regularization
from tfcompress.pruning.report import PruningReport
from tfcompress.pruning.schedules import (
    ConstantSparsity,
    CosineSchedule,
    PolynomialDecay,
    PruningSchedule,
)
from tfcompress.pruning.threshold_pruning import ThresholdPruning

__all__ = [
    "SET",
    "Block",
    "Channels",
    "ConstantSparsity",
    "CosineSchedule",
    "Criterion",
    "DynamicNetworkSurgery",
    "Method",
    "MetricGuided",
    "NOfM",
    "Pattern",
    "PolynomialDecay",
    "Pruner",
    "Pruning",
    "PruningReport",
    "PruningRun",
    "PruningSchedule",
    "Regularization",
    "RigL",
    "ScoringOptions",
    "ThresholdPruning",
    "Unstructured",
    "get_criterion",
    "register_criterion",
]
