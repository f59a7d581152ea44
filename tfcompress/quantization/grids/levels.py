"""Weights on a list of whole levels: of one's own, powers of two, and sums of powers of two."""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.finite import finite_gradient
from tfcompress.quantization.fake_quant.affine import MIN_SCALE, over, scale_and_round
from tfcompress.quantization.fake_quant.uniform_weights import extremes
from tfcompress.quantization.fake_quant.variables import VariableSpec
from tfcompress.quantization.fake_quant.weight_quantizer import KernelGrid, WeightQuantizer
from tfcompress.quantization.grids.gradients import at_least, nearest_through
from tfcompress.quantization.grids.requirements import require_bits, require_usual
from tfcompress.quantization.options import WeightOptions, granularity


@dataclasses.dataclass(frozen=True)
class LevelQuantizer(WeightQuantizer):
    """Base of weight quantizers whose codes are some of the whole numbers from −127 to 127.

    A subclass gives the levels. The largest |w| of a channel (or kernel) is put on the largest
    level; what lies between two levels goes to the nearer one. Gradient: straight through.
    """

    @abc.abstractmethod
    def levels(self, options: WeightOptions) -> np.ndarray:
        """The codes, ascending whole numbers."""

    def boundaries(self, levels: np.ndarray) -> np.ndarray:
        """From where on a value belongs to the next level: half way by default."""
        return (levels[1:] + levels[:-1]) / 2

    def scale(
        self, kernel: tf.Tensor, state: Mapping[str, keras.Variable], grid: KernelGrid
    ) -> tf.Tensor:
        """The value of code 1, of shape `grid.scale_shape`."""
        largest = np.abs(self.levels(grid.options)).max()
        return over(tf.stop_gradient(extremes(kernel, grid)[1]), float(largest))

    def check(self, options: WeightOptions) -> None:
        require_usual(self, options)

    def quantize(
        self,
        kernel: tf.Tensor,
        state: Mapping[str, keras.Variable],
        grid: KernelGrid,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        scale, levels = self.scale(kernel, state, grid), self.levels(grid.options)
        boundaries = self.boundaries(levels)
        ends = (int(levels[0]), int(levels[-1]))
        rounded = scale_and_round(
            kernel, scale, 0.0, ends, lambda codes: nearest_through(codes, levels, boundaries)
        )
        return rounded, scale

    def code_ends(self, options: WeightOptions) -> tuple[int, int]:
        levels = self.levels(options)
        return int(levels[0]), int(levels[-1])

    def num_bits(self, options: WeightOptions) -> int:
        levels = self.levels(options)
        return next(
            b for b in (2, 4, 8) if levels[0] >= -(2 ** (b - 1)) and levels[-1] < 2 ** (b - 1)
        )

    def describe(self, options: WeightOptions) -> str:
        stored = f"{len(self.levels(options))} levels in int{self.num_bits(options)}"
        return f"{stored} {granularity(options)}, {type(self).__name__}"


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class LevelWeights(LevelQuantizer):
    """Weights on levels of your own: a look-up grid. `num_bits` of the scheme is not read.

    Attributes:
        codes: Whole numbers from −127 to 127, ascending: the relative sizes of the levels, such as
            `(-8, -4, -2, -1, 0, 1, 2, 4, 8)`. Without 0, pruned kernels are refused.
    """

    codes: tuple[int, ...] = (-1, 0, 1)

    def __post_init__(self) -> None:
        codes = np.asarray(self.codes)
        is_whole = codes.ndim == 1 and len(codes) >= 2 and np.array_equal(codes, np.round(codes))
        if not is_whole or np.any(np.diff(codes) <= 0) or np.abs(codes).max() > 127:
            raise ValueError(
                "Expected `codes` to be two or more whole numbers from −127 to 127, ascending. "
                f"Received: {self.codes!r}."
            )
        object.__setattr__(self, "codes", tuple(int(code) for code in codes))

    @property
    def holds_zero(self) -> bool:
        return 0 in self.codes

    def levels(self, options: WeightOptions) -> np.ndarray:
        return np.asarray(self.codes, np.int64)


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class PowerOfTwoWeights(LevelQuantizer):
    """0 and ±2ⁿ: a product by such a weight is a shift.

    With b bits and `logarithmic=False` the levels of INQ (Zhou et al. 2017, eq. 2 to 4): 2ᵇ⁻²
    exponents up to n₁ = ⌊log₂(4/3 · max|w|)⌋, rounded to the nearer level. With `logarithmic=True`
    those of Miyashita et al. 2016: 2ᵇ⁻¹ − 1 exponents up to log₂ max|w| rounded, and the rounding
    is that of log₂|w|. Scales are powers of two. Levels span no more than int8 has, so `num_bits`
    is 3 or 4 (or 2, with one exponent).

    INQ trains with weights that are held for good, the largest first: see
    `callbacks.IncrementalFreezing`, with `fixed_scale=True`.

    Attributes:
        logarithmic: Which of both.
        fixed_scale: Keep the scales of the kernel that the model is quantized with, as INQ does.
    """

    logarithmic: bool = False
    fixed_scale: bool = False

    def check(self, options: WeightOptions) -> None:
        require_usual(self, options)
        require_bits(self, options, 2, 3, 4)

    def levels(self, options: WeightOptions) -> np.ndarray:
        bits = options.num_bits
        count = 2 ** (bits - 1) - 1 if self.logarithmic else 2 ** (bits - 2)
        powers = 2 ** np.arange(count)
        return np.concatenate([-powers[::-1], [0], powers])

    def boundaries(self, levels: np.ndarray) -> np.ndarray:
        if not self.logarithmic:
            return super().boundaries(levels)
        sizes = np.sqrt(np.abs(levels[1:] * levels[:-1]))
        # Between 0 and the smallest level a logarithm would go on: below half of it is 0.
        sizes = np.where(sizes == 0, 0.5, sizes)
        return np.where(levels[1:] <= 0, -sizes, sizes)

    def variables(self, grid: KernelGrid) -> Mapping[str, VariableSpec]:
        return {"scale": VariableSpec(grid.scale_shape, initial=1.0)} if self.fixed_scale else {}

    def fit(self, kernel: np.ndarray, grid: KernelGrid) -> Mapping[str, np.ndarray]:
        if not self.fixed_scale:
            return {}
        return {"scale": np.asarray(self._scale_of(tf.constant(kernel, tf.float32), grid))}

    def scale(
        self, kernel: tf.Tensor, state: Mapping[str, keras.Variable], grid: KernelGrid
    ) -> tf.Tensor:
        return state["scale"].value if self.fixed_scale else self._scale_of(kernel, grid)

    def _scale_of(self, kernel: tf.Tensor, grid: KernelGrid) -> tf.Tensor:
        largest = tf.stop_gradient(extremes(kernel, grid)[1])
        # The small constant keeps an exact power of two where rounding in log2 would halve it.
        exponent = tf.math.log(largest) / np.float32(np.log(2.0)) + 1e-5
        if self.logarithmic:
            exponent = tf.round(exponent)
        else:
            exponent = tf.floor(exponent + np.float32(np.log2(4 / 3)))
        return tf.pow(2.0, exponent) / np.float32(self.levels(grid.options)[-1])


@keras.saving.register_keras_serializable(package="tfcompress")
@dataclasses.dataclass(frozen=True)
class APoT(LevelQuantizer):
    """Sums of powers of two up to a trained ceiling α (Li et al. 2020, "Additive Powers-of-Two").

    The magnitude of b − 1 bits is a sum of terms of two bits, pᵢ ∈ {0, 2⁻ⁱ, 2⁻ⁱ⁻ⁿ, 2⁻ⁱ⁻²ⁿ} with n
    terms (eq. 5); with an odd bit left, one more term of one bit. The kernel is normalized by mean
    and deviation first (eq. 8), and multiplied by the deviation again, which keeps a pretrained
    kernel's size. α starts at three deviations. Gradients (eq. 7): to w 1 inside, 0 outside; to α
    the level minus w / α inside, ±1 outside.

    Attributes:
        normalize: Subtract the mean, so that a pruned weight is no longer 0: such kernels are
            refused. Without it the kernel is only divided by its deviation.
    """

    normalize: bool = True

    @property
    def holds_zero(self) -> bool:
        return not self.normalize

    @property
    def keeps_levels(self) -> bool:
        # Rounding changes the deviation that the next rounding divides by.
        return False

    def check(self, options: WeightOptions) -> None:
        require_usual(self, options)
        require_bits(self, options, 2, 3, 4, 5)

    def levels(self, options: WeightOptions) -> np.ndarray:
        sums = np.unique([sum(terms) for terms in itertools.product(*_TERMS[options.num_bits])])
        return np.concatenate([-sums[:0:-1], sums])

    def variables(self, grid: KernelGrid) -> Mapping[str, VariableSpec]:
        return {"alpha": VariableSpec(grid.scale_shape, initial=3.0, trainable=True)}

    def quantize(
        self,
        kernel: tf.Tensor,
        state: Mapping[str, keras.Variable],
        grid: KernelGrid,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        mean, variance = tf.nn.moments(kernel, grid.reduced_axes, keepdims=True)
        deviation = tf.sqrt(variance)
        deviation = tf.stop_gradient(tf.where(deviation < MIN_SCALE, 1.0, deviation))
        centred = kernel - mean if self.normalize else kernel
        values, scale = super().quantize(centred / deviation, state, grid, training)
        return values * deviation, scale * deviation

    def scale(
        self, kernel: tf.Tensor, state: Mapping[str, keras.Variable], grid: KernelGrid
    ) -> tf.Tensor:
        alpha = at_least(finite_gradient(state["alpha"].value), MIN_SCALE)
        # The maximum keeps the graph optimizer from moving the constant into later products.
        return tf.maximum(over(alpha, float(self.levels(grid.options)[-1])), MIN_SCALE / 1024)


#: Bits of a weight → what each term of its magnitude may be, in units of the smallest.
_TERMS: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((0, 1),),
    3: ((0, 1, 2, 4),),
    4: ((0, 1, 4, 8), (0, 2)),
    5: ((0, 2, 8, 32), (0, 1, 4, 16)),
}
