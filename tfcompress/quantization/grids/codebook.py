"""Weights on the levels of a k-means codebook, which is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.finite import finite_gradient
from tfcompress.quantization.fake_quant.affine import round_through
from tfcompress.quantization.fake_quant.uniform_weights import extremes
from tfcompress.quantization.fake_quant.variables import VariableSpec
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid, WeightQuantizer
from tfcompress.quantization.grids.gradients import with_gradient_of
from tfcompress.quantization.grids.requirements import require_bits, require_usual
from tfcompress.quantization.options import WeightOptions, granularity

_LARGEST = 127
#: Rounds of Lloyd's algorithm when a model is quantized; it rarely moves after a few.
_ROUNDS = 30


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class CodebookWeights(WeightQuantizer):
    """The nearest of 2ᵇ − 1 trained levels and 0, relative to the largest |w| of each channel.

    k-means in one dimension over all weights of a kernel, each divided by its channel's largest
    (Lloyd 1982; as a codebook of weights Han et al. 2016, "Deep Compression", 3). One level is
    always 0. Levels are trained: the gradient of a level is the sum of its weights' gradients; to a
    weight the gradient goes straight through. Levels are rounded to 1/127 of the largest value, in
    training too, which is what one scale per channel can hold: exact in int8, a byte per weight.
    `tfc.cluster` shares values across channels instead, and packs them smaller.
    """

    @property
    def has_fixed_codes(self) -> bool:
        return False

    def code_ends(self, options: WeightOptions) -> tuple[int, int]:
        return -_LARGEST, _LARGEST

    def check(self, options: WeightOptions) -> None:
        require_usual(self, options)
        require_bits(self, options, 2, 3, 4, 5)

    def variables(self, grid: KernelGrid) -> Mapping[str, VariableSpec]:
        return {
            "levels": VariableSpec((2**grid.options.num_bits - 1,), trainable=True),
            "scale": VariableSpec(grid.scale_shape, initial=1.0),
        }

    def fit(self, kernel: np.ndarray, grid: KernelGrid) -> Mapping[str, np.ndarray]:
        largest = np.asarray(extremes(tf.constant(kernel, tf.float32), grid)[1])
        units = (kernel / largest).ravel()
        levels = k_means(units[units != 0], 2**grid.options.num_bits)
        return {"levels": levels[levels != 0], "scale": (largest / _LARGEST).astype(np.float32)}

    def quantize(
        self,
        kernel: tf.Tensor,
        state: Mapping[str, keras.Variable],
        grid: KernelGrid,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        scale = state["scale"].value
        levels = finite_gradient(state["levels"].value)
        codes = tf.clip_by_value(levels * _LARGEST, -_LARGEST, _LARGEST)
        codes = tf.sort(tf.concat([round_through(codes), [0.0]], 0))
        units = tf.reshape(tf.stop_gradient(kernel / scale), [-1])
        boundaries = tf.stop_gradient((codes[1:] + codes[:-1]) / 2)
        index = tf.searchsorted(boundaries, units, side="right")
        chosen = tf.reshape(tf.gather(codes, index), tf.shape(kernel))
        through = with_gradient_of(tf.zeros_like(kernel), kernel)
        return chosen * scale + through, scale

    def num_bits(self, options: WeightOptions) -> int:
        return 8

    def describe(self, options: WeightOptions) -> str:
        return f"{2**options.num_bits} levels in int8 {granularity(options)}, CodebookWeights"


def k_means(values: np.ndarray, count: int) -> np.ndarray:
    """`count` centres of one-dimensional values by Lloyd's algorithm, ascending, float32.

    It starts at evenly spaced values of their range (Han et al. 2016, 3.2: linear initialization).
    The centre that is nearest to 0 there is held at 0 in every round.
    """
    if not len(values):
        return np.delete(np.linspace(-1, 1, count + 1, dtype=np.float32), 0)
    ordered = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], count)
    centres[np.abs(centres).argmin()] = 0
    for _ in range(_ROUNDS):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(ordered)]])
        sizes = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(sizes, 1)
        moved = np.where((sizes > 0) & (centres != 0), means, centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return np.sort(centres).astype(np.float32)
