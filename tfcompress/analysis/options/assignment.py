"""A choice of widths, ranks, sparsities and bits for every layer, and the model that it gives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from typing import Any

import keras

from tfcompress.analysis.options.changes import prune_kernel
from tfcompress.analysis.options.options import PACKED_PRESETS, PRESETS
from tfcompress.analysis.options.structured import Structured, structured
from tfcompress.analysis.options.widths import Widths
from tfcompress.model.graph import Graph
from tfcompress.model.kernels import iterate_layers, layer_kernels
from tfcompress.model.paths import graph_paths
from tfcompress.model.rewrite import rebuild_like
from tfcompress.quantization.config import QuantizationConfig
from tfcompress.quantization.quantize import quantize
from tfcompress.quantization.quantized_model import QuantizedModel


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What each layer gets.

    Attributes:
        channels: Group of channels → the share that it keeps; 1 without a key.
        ranks: Layer → the share of its multiply-accumulates that its two factors take; a layer
            without a key keeps its kernel.
        sparsity: Layer → the share of its weights that is zero; 0 without a key.
        bits: Layer → bits of its weights; 8 without a key.
        packed: Whether kernels of convolutions with few bits are packed in the file.
    """

    channels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ranks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sparsity: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    packed: bool = False

    @property
    def key(self) -> str:
        """A short name that tells assignments apart."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @property
    def structure(self) -> Assignment:
        """The widths and ranks alone."""
        return Assignment(self.channels, self.ranks, packed=self.packed)

    @property
    def presets(self) -> Mapping[int, str]:
        """Bits of weights → the preset of `quantize` that gives them."""
        return PACKED_PRESETS if self.packed else PRESETS

    def structured(self, model: keras.Model, widths: Widths | None) -> Structured:
        """The float model with these widths and ranks.

        Args:
            model: The whole model; it is left untouched.
            widths: Its groups of channels.
        """
        return structured(model, widths, self.channels, self.ranks)

    def build(
        self, start: Structured, calibration_data: Any, bias_correction: bool | None = None
    ) -> QuantizedModel:
        """The model with sparsity and bits; training goes on from it.

        Args:
            start: The float model with the widths and ranks of the assignment; left untouched.
            calibration_data: As for `quantize`.
            bias_correction: As for `quantize`.
        """
        model = start.model
        copy = pruned(model, start.expand(self.sparsity)) if self.sparsity else model
        paths = layers_by_path(model)
        bits = start.expand(self.bits)
        by_name = {n: self.presets[b] for n, b in bits.items() if b != 8 and n in paths}
        with warnings.catch_warnings():
            # Ranges are those of a model whose training has not begun.
            warnings.simplefilter("ignore", UserWarning)
            return quantize(
                copy,
                QuantizationConfig("int8", by_name=by_name),
                calibration_data=calibration_data,
                bias_correction=bias_correction,
            )


def pruned(model: keras.Model, shares: Mapping[str, float]) -> keras.Model:
    """An uncompiled copy without the smallest weights of each layer, by path → share of zeros.

    Args:
        model: A functional model that calls no other models; it is left untouched.
        shares: Path → share.
    """
    copy = rebuild_like(model, Graph.from_model(model))
    set_zeros(copy, shares)
    return copy


def set_zeros(model: keras.Model, shares: Mapping[str, float]) -> None:
    """Sets the smallest weights of each layer of a model to 0, by path → share of zeros."""
    for path, layer in layers_by_path(model).items():
        share = shares.get(path, 0.0)
        for inner in iterate_layers(layer) if share else ():
            for kernel in layer_kernels(inner):
                kernel.variable.assign(prune_kernel(kernel.variable.numpy(), share))


def layers_by_path(model: keras.Model) -> dict[str, keras.Layer]:
    """Path → layer, of the calls of a functional model."""
    paths = graph_paths(Graph.from_model(model))
    return {path: op for op, path in paths.items() if isinstance(op, keras.Layer)}
