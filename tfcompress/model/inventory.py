"""The layer inventory: what each layer holds and costs; every report prints this one table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.model.compressed import is_compressed
from tfcompress.model.kernels import iterate_layers, layer_kernels
from tfcompress.model.macs import count_macs
from tfcompress.model.paths import layer_paths
from tfcompress.model.transforms import TransformedWeights, WeightTransform
from tfcompress.tables import Printable, render_table


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        name: Its name, or its path where two layers share a name.
        kind: Its class.
        parameters: Number of weights of all kinds, trainable or not, but without masks,
            codebooks and ranges of a compressed layer.
        kernel: Number of weights in kernels.
        nonzeros: Number of kernel weights that are not exactly zero in the forward pass.
        distinct: Number of distinct values of the kernels in the forward pass, zero included.
        bits: Bits per kernel weight.
        macs: Multiply-accumulates for one example; `None` where they are not known.
        bytes: Bytes of the kernels at these bits and of everything else in float32; zeros are
            stored like other values.
    """

    name: str
    kind: str
    parameters: int
    kernel: int
    nonzeros: int
    distinct: int
    bits: int
    macs: int | None
    bytes: int

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in the kernels; 0 without a kernel."""
        return 1.0 - self.nonzeros / self.kernel if self.kernel else 0.0


@dataclasses.dataclass(frozen=True)
class Inventory(Printable):
    """All layers with weights, in the order of the model."""

    rows: tuple[LayerRow, ...]

    def __getitem__(self, name: str) -> LayerRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no layer {name!r}; the layers are {[r.name for r in self.rows]}")

    @property
    def total(self) -> LayerRow:
        """The sums over all layers; `bits` is the mean over kernel weights, rounded."""
        kernel = sum(row.kernel for row in self.rows)
        known = [row.macs for row in self.rows if row.macs is not None]
        bits = sum(row.bits * row.kernel for row in self.rows)
        return LayerRow(
            "total",
            "",
            sum(row.parameters for row in self.rows),
            kernel,
            sum(row.nonzeros for row in self.rows),
            max((row.distinct for row in self.rows), default=0),
            round(bits / kernel) if kernel else 0,
            sum(known) if known else None,
            sum(row.bytes for row in self.rows),
        )

    def __str__(self) -> str:
        cells = []
        for row in (*self.rows, self.total):
            distinct = "" if row.name == "total" or not row.kernel else row.distinct
            cells.append(
                (
                    row.name,
                    row.kind,
                    row.parameters,
                    row.nonzeros if row.kernel else "",
                    f"{100 * row.sparsity:.1f} %" if row.kernel else "",
                    distinct,
                    row.bits if row.kernel else "",
                    "" if row.macs is None else row.macs,
                    row.bytes,
                )
            )
        columns = ("layer", "class", "parameters", "non-zeros", "sparsity", "distinct")
        return render_table("Layers", (*columns, "bits", "MACs", "bytes"), cells)

    def plot(self, path: Any = None) -> Any:
        """Draws non-zero and zero weights and the MACs of each layer.

        Args:
            path: Where to save the picture; by default it is not saved.

        Returns:
            The matplotlib figure.
        """
        from matplotlib.figure import Figure

        rows = [row for row in self.rows if row.kernel]
        names = [row.name for row in rows]
        figure = Figure(figsize=(8, 0.3 * len(rows) + 1.5), layout="constrained")
        weights, macs = figure.subplots(1, 2, sharey=True)
        weights.barh(names, [row.nonzeros for row in rows], label="non-zero")
        weights.barh(
            names,
            [row.kernel - row.nonzeros for row in rows],
            left=[row.nonzeros for row in rows],
            color="lightgray",
            label="zero",
        )
        weights.set_xlabel("kernel weights")
        weights.legend()
        weights.invert_yaxis()
        macs.barh(names, [row.macs or 0 for row in rows], color="tab:orange")
        macs.set_xlabel("MACs")
        if path is not None:
            figure.savefig(path)
        return figure


def inventory(
    model: keras.Model,
    *,
    bits: Mapping[str, int] | Callable[[keras.Layer], int] | None = None,
    inputs: Any = None,
) -> Inventory:
    """Takes stock of a model.

    Args:
        model: A built model.
        bits: Bits per kernel weight, by layer name or as a function of the layer; 32 where it
            does not say. By default those of a quantized layer's scheme, 32 of others.
        inputs: An example batch, for the MACs of a subclassed model.

    Returns:
        One row per layer with weights.
    """
    paths = layer_paths(model)
    try:
        macs = count_macs(model, by_layer=True, inputs=inputs)
    except ValueError:
        macs = None
    rows = []
    # What a compressed layer keeps beside its weights is no part of the network.
    counted = {
        id(v)
        for layer in iterate_layers(model)
        if isinstance(layer, TransformedWeights)
        for v in layer.weights
    }
    for layer in iterate_layers(model):
        variables = [v for v in _own_variables(layer) if id(v) not in counted]
        counted.update(id(v) for v in variables)
        if not variables:
            continue
        name = paths[id(layer)]
        kernels = _forward_kernels(layer)
        width = _bits(bits, layer, name)
        size = sum(kernel.size for kernel in kernels)
        parameters = sum(math.prod(v.shape) for v in variables)
        values = np.concatenate([k.reshape(-1) for k in kernels]) if kernels else np.zeros(0)
        rows.append(
            LayerRow(
                name,
                type(layer).__name__,
                parameters,
                size,
                int(np.count_nonzero(values)),
                int(np.unique(values).size),
                width,
                None if macs is None else macs.get(name, 0),
                math.ceil(size * width / 8) + 4 * (parameters - size),
            )
        )
    return Inventory(tuple(rows))


def _forward_kernels(layer: keras.Layer) -> list[np.ndarray]:
    """The kernels as a forward pass reads them: behind the masks and rounding of the layer."""
    latent = {k.spec.name: k.variable.numpy() for k in layer_kernels(layer)}
    effective = layer.effective_weights() if is_compressed(layer) else {}
    return [np.asarray(effective.get(name, value)) for name, value in latent.items()]


def _trained_bits(layer: keras.Layer) -> int:
    """The most bits that the transforms of its kernels leave; 32 for a layer in float."""
    if not is_compressed(layer):
        return 32
    transforms = layer.transformed.of_type(WeightTransform).values()
    known = [t.num_bits for t in transforms if hasattr(t, "num_bits")]
    return max(known, default=32)


def _own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The weights of a layer without those of layers inside it; a cell counts as its layer."""
    inside = {
        id(v)
        for inner in iterate_layers(layer)
        if inner is not layer and inner is not getattr(layer, "cell", None)
        for v in inner.weights
    }
    return [v for v in layer.weights if id(v) not in inside]


def _bits(bits: Any, layer: keras.Layer, name: str) -> int:
    if bits is None:
        return _trained_bits(layer)
    if callable(bits):
        return int(bits(layer))
    return int(bits.get(name, bits.get(layer.name, 32)))
