"""Keras models as data: graph of calls, table of kernels, weight transforms, inventory.

The package that every technique imports, and that imports none of them. What is named here is
public, for those who write layers, transforms or techniques of their own.
"""

from tfcompress.model.graph import Graph, Node, Value
from tfcompress.model.inventory import Inventory, LayerRow, inventory
from tfcompress.model.kernels import Kernel, KernelSpec, compressible_kernels
from tfcompress.model.macs import count_macs, uncounted_layers
from tfcompress.model.paths import layer_paths
from tfcompress.model.rewrite import rebuild
from tfcompress.model.strip import strip
from tfcompress.model.transforms import CLUSTER, FAKE_QUANT, KEEP_MASK, KeepMask, WeightTransform
from tfcompress.tables import render_table

__all__ = [
    "CLUSTER",
    "FAKE_QUANT",
    "KEEP_MASK",
    "Graph",
    "Inventory",
    "KeepMask",
    "Kernel",
    "KernelSpec",
    "LayerRow",
    "Node",
    "Value",
    "WeightTransform",
    "compressible_kernels",
    "count_macs",
    "inventory",
    "layer_paths",
    "rebuild",
    "render_table",
    "strip",
    "uncounted_layers",
]
