"""What is clustered, what is not, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import keras
import numpy as np
from keras import layers

from tfcompress.model.compressed import compressed_class
from tfcompress.model.keras_private import all_layers
from tfcompress.model.kernels import (
    Kernel,
    compressible_kernels,
    iterate_layers,
    kernel_specs,
    layer_kernels,
)
from tfcompress.model.paths import layer_paths
from tfcompress.model.transforms import WeightCall, WeightTransform
from tfcompress.sharing.clustering import clustered_kernels
from tfcompress.tables import Printable, render_table

# Their scales and shifts are no kernels, also where they run along several axes.
_NORMS = (
    layers.BatchNormalization,
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.Normalization,
    layers.RMSNormalization,
)


@dataclasses.dataclass(frozen=True)
class ClusteringReport(Printable):
    """What is clustered and what is not. Print it.

    Attributes:
        kernels: Kernel → `(scope, k, distinct values in the forward pass, fraction of zeros)`;
            distinct values per channel, the most of any, in the scope `"channel"`.
        left_alone: Kernel or layer with weights → why it is not clustered.
    """

    kernels: Mapping[str, tuple[str, int, int, float]]
    left_alone: Mapping[str, str]

    def __str__(self) -> str:
        rows = [
            (name, scope, k, distinct, f"{100 * zeros:.1f} %")
            for name, (scope, k, distinct, zeros) in self.kernels.items()
        ]
        text = render_table("Clustered", ("kernel", "scope", "k", "distinct", "zeros"), rows)
        if self.left_alone:
            text += render_table("Left alone", ("layer", "why"), list(self.left_alone.items()))
        return text


def clustering_report(model: keras.Model) -> ClusteringReport:
    """Says of every kernel of `model` how it is clustered, or why it is not.

    Args:
        model: A built model, clustered or not.
    """
    paths = layer_paths(model)
    kernels, left_alone = {}, {}
    clustered = {id(kernel.variable): transform for kernel, transform in clustered_kernels(model)}
    known = compressible_kernels(model)
    outer = {id(layer) for layer in _outer_layers(getattr(model, "student", model))}
    for kernel in known:
        name = kernel.name.replace(kernel.layer.name, paths[id(kernel.layer)], 1)
        transform = clustered.get(id(kernel.variable))
        if transform is None:
            left_alone[name] = _reason(kernel, outer)
            continue
        read = np.asarray(transform.apply(kernel.variable.value, WeightCall(training=False)))
        distinct = max(np.unique(row).size for row in transform.grouped(read))
        zeros = float(np.mean(read == 0))
        kernels[name] = (transform.scope, transform.num_clusters, distinct, zeros)
    for layer in iterate_layers(model):
        if kernel_specs(layer) and not layer_kernels(layer):
            left_alone[paths[id(layer)]] = "it is not built"
    for layer in _unknown(model, known):
        left_alone[paths[id(layer)]] = f"{type(layer).__name__} is not in the table of kernels"
    return ClusteringReport(kernels, left_alone)


def _reason(kernel: Kernel, outer: set[int]) -> str:
    if compressed_class(kernel.layer) is None:
        return f"a class of its own, {type(kernel.layer).__name__}, may do anything with its kernel"
    if id(kernel.layer) not in outer:
        return "it belongs to a layer inside a layer, which is clustered as a whole or not at all"
    return (
        f"it was not chosen, or has no more weights ({kernel.variable.shape}) to a codebook than "
        "clusters"
    )


def _outer_layers(model: keras.Model) -> Iterator[keras.Layer]:
    """Layers of a model, and of the models inside it, but not those inside other layers."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _outer_layers(layer)
        else:
            yield layer


def _unknown(model: keras.Model, known: tuple[Kernel, ...]) -> Iterator[keras.Layer]:
    """Layers with matrices of their own that the table of kernels does not name."""
    # Of a distiller only the student is clustered.
    found = list(iterate_layers(getattr(model, "student", model)))
    seen = {id(kernel.variable) for kernel in known}
    seen |= {id(v) for t in found if isinstance(t, WeightTransform) for v in t.variables}
    for layer in found:
        # The cell of a recurrent layer counts as the layer itself.
        parts = [] if isinstance(layer, layers.RNN) else all_layers(layer)[1:]
        inner = {id(v) for part in parts for v in part.variables}
        own = [v for v in layer.variables if id(v) not in inner | seen]
        seen.update(id(v) for v in own)
        is_matrix = any(len(v.shape) > 1 and "float" in v.dtype for v in own)
        if is_matrix and not isinstance(layer, _NORMS):
            yield layer
