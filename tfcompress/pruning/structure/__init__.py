"""Structured pruning: whole channels go, and what is left is an ordinary, smaller Keras model."""

from tfcompress.pruning.structure.callbacks import ChannelPruning
from tfcompress.pruning.structure.dependencies import Dependencies, Group
from tfcompress.pruning.structure.masking import ChannelPruner
from tfcompress.pruning.structure.options import WidthOptions
from tfcompress.pruning.structure.report import ShrinkReport
from tfcompress.pruning.structure.rules.registry import register_rule
from tfcompress.pruning.structure.shrink import shrink
from tfcompress.pruning.structure.tracer import Role

__all__ = [
    "ChannelPruner",
    "ChannelPruning",
    "Dependencies",
    "Group",
    "Role",
    "ShrinkReport",
    "WidthOptions",
    "register_rule",
    "shrink",
]
