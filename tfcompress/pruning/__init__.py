"""Sparsity during an ordinary `fit`: criteria, patterns, schedules, masks, regularization."""

from tfcompress.pruning.criteria import Criterion, get_criterion, register_criterion
from tfcompress.pruning.patterns import Block, Channels, NOfM, Pattern, Unstructured
from tfcompress.pruning.pruner import Pruner
from tfcompress.pruning.report import PruningReport
from tfcompress.pruning.schedules import (
    ConstantSparsity,
    CosineSchedule,
    PolynomialDecay,
    PruningSchedule,
)

__all__ = [
    "Block",
    "Channels",
    "ConstantSparsity",
    "CosineSchedule",
    "Criterion",
    "NOfM",
    "Pattern",
    "PolynomialDecay",
    "Pruner",
    "PruningReport",
    "PruningSchedule",
    "Unstructured",
    "get_criterion",
    "register_criterion",
]
