"""Weights whose range is that of the last training batch, as tfmot keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import tensorflow as tf

from tfcompress.quantization.fake_quant.affine import code_range, over
from tfcompress.quantization.fake_quant.uniform_weights import UniformWeights
from tfcompress.quantization.fake_quant.variables import VariableSpec
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid
from tfcompress.quantization.grids.requirements import require_bits, require_usual
from tfcompress.quantization.options import WeightOptions, granularity

GROUPS = ("channel", "tensor", "last axis")


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class LastValueWeights(UniformWeights):
    """scale · clip(round(w / scale)) with scale = limit / 127, as tfmot's `LastValueQuantizer`.

    tfmot stores the largest |w| of the last training batch and rounds by it in inference, after
    the optimizer has moved the kernel once more. So `limit` holds as long as the kernel is the one
    that it came with, by its largest |w|; of a kernel that has been trained since, the limit is its
    own largest |w|.

    Attributes:
        group: The weights that share one limit: those of a `"channel"`, all of the `"tensor"`, or
            those at one index of the `"last axis"` (the depth multiplier of a depthwise kernel).
    """

    group: str = "channel"

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"Expected `group` to be one of {GROUPS}. Received: {self.group!r}.")

    def check(self, options: WeightOptions) -> None:
        require_bits(self, options, 8)
        require_usual(self, options)

    def variables(self, grid: KernelGrid) -> Mapping[str, VariableSpec]:
        return {name: VariableSpec(grid.scale_shape) for name in ("limit", "largest")}

    def largest(self, kernel: tf.Tensor, grid: KernelGrid) -> tf.Tensor:
        """The largest |w| among the weights that share a limit, of shape `grid.scale_shape`."""
        size = tf.abs(tf.stop_gradient(kernel))
        rank = len(grid.shape)
        axes = {
            "channel": grid.reduced_axes,
            "tensor": tuple(range(rank)),
            "last axis": tuple(range(rank - 1)),
        }[self.group]
        return tf.broadcast_to(tf.reduce_max(size, axes, keepdims=True), grid.scale_shape)

    def quantize(
        self,
        kernel: tf.Tensor,
        state: Mapping[str, keras.Variable],
        grid: KernelGrid,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        largest = self.largest(kernel, grid)
        given = state["limit"].value
        is_given = (given > 0) & tf.equal(state["largest"].value, largest)
        limit = tf.where(is_given, given, largest)
        # Any scale holds zeros; one of ordinary size keeps the bias of such a channel in int32.
        widest = tf.reduce_max(limit)
        limit = tf.where(limit > 0, limit, tf.where(widest > 0, widest, 1.0))
        scale = over(limit, code_range(8)[1])
        return self._on_grid(kernel, scale, tf.zeros_like(scale), grid.options, training), scale

    def describe(self, options: WeightOptions) -> str:
        shared = "" if self.group == "channel" else f", one limit per {self.group}"
        return f"int8 {granularity(options)}{shared}"
