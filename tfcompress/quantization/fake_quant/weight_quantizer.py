"""The interface of weight quantizers: the grid that a kernel is put on, and its gradient."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfcompress.quantization.configurable import Configurable
from tfcompress.quantization.fake_quant.affine import code_range
from tfcompress.quantization.fake_quant.variables import VariableSpec
from tfcompress.quantization.options import WeightOptions, granularity


@dataclasses.dataclass(frozen=True)
class KernelGrid:
    """What a quantizer is told of a kernel.

    Attributes:
        options: What the scheme asks for.
        shape: The kernel's shape.
        output_axes: Axes that together enumerate the output channels.
        per_channel: Whether channels have scales of their own. False where the scheme says so, and
            where channels share values on purpose (a codebook), which one scale alone keeps shared.
    """

    options: WeightOptions
    shape: tuple[int, ...]
    output_axes: tuple[int, ...]
    per_channel: bool

    @property
    def reduced_axes(self) -> tuple[int, ...]:
        """Axes along which one scale holds, for `tf.reduce_max(…, axes, keepdims=True)`."""
        kept = self.output_axes if self.per_channel else ()
        return tuple(axis for axis in range(len(self.shape)) if axis not in kept)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the scales, which broadcasts against the kernel."""
        return tuple(1 if a in self.reduced_axes else n for a, n in enumerate(self.shape))

    @property
    def channel_shape(self) -> tuple[int, ...]:
        """Shape of one number per output channel, which broadcasts against the kernel."""
        return tuple(n if a in self.output_axes else 1 for a, n in enumerate(self.shape))

    def rows(self, kernel: np.ndarray) -> np.ndarray:
        """The weights of each scale as one row: (scales, weights), in the scales' order."""
        axes = self.reduced_axes
        moved = np.moveaxis(kernel, axes, range(-len(axes), 0))
        return moved.reshape(-1, math.prod(self.shape[axis] for axis in axes))


@dataclasses.dataclass(frozen=True)
class WeightQuantizer(Configurable, abc.ABC):
    """Base class of weight quantizers, for your own ones too: `WeightScheme(quantizer=…)`.

    A subclass is a frozen dataclass whose fields are its options; one object serves every kernel of
    a model. Register it with `keras.saving.register_keras_serializable()`, or pass the class as a
    custom object, so that a model that uses it can be loaded and cloned.

    What it computes must be a grid: whole numbers from −127 to 127, times one positive scale per
    channel (or per kernel). 0 must stay 0, so that pruned weights do, or `holds_zero` says that it
    does not: a kernel with pruned weights is then refused.
    """

    @property
    def holds_zero(self) -> bool:
        """Whether a weight that is 0 stays 0."""
        return True

    @property
    def keeps_levels(self) -> bool:
        """Whether a kernel on the grid is quantized to itself, and others to what is nearest."""
        return True

    @property
    def has_fixed_codes(self) -> bool:
        """Whether its levels stay the same whole numbers in training, times a moving scale."""
        return True

    def code_ends(self, options: WeightOptions) -> tuple[int, int]:
        """Smallest and largest code: the range beyond which weights are clipped."""
        return code_range(options.num_bits, options.narrow_range)

    def check(self, options: WeightOptions) -> None:
        """Raises `ValueError` for options of a scheme that the quantizer cannot follow."""

    def variables(self, grid: KernelGrid) -> Mapping[str, VariableSpec]:
        """The variables that it keeps for each kernel, by name; none by default."""
        return {}

    def fit(self, kernel: np.ndarray, grid: KernelGrid) -> Mapping[str, np.ndarray]:
        """Values of the variables for a kernel, when the model is quantized.

        Args:
            kernel: The float kernel; with the batch norm after it folded in, if it has one scale.
            grid: Its shape and options.

        Returns:
            The variables to assign, by name; the others keep their initial value.
        """
        return {}

    @abc.abstractmethod
    def quantize(
        self,
        kernel: tf.Tensor,
        state: Mapping[str, keras.Variable],
        grid: KernelGrid,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Puts a kernel on its grid, differentiably.

        Args:
            kernel: The float32 kernel. Gradients to it and to trainable variables are those of what
                is computed here: a straight-through one is
                `kernel + tf.stop_gradient(rounded - kernel)`.
            state: The kernel's variables. In training they may be assigned.
            grid: Its shape and options.
            training: Whether it is a training step.

        Returns:
            `(values, scale)`: the kernel on its grid, and the scale, of shape `grid.scale_shape`
            and positive. In inference `values / scale` are the whole numbers that the file holds.
            In training the gradient of a trained scale is that of held weights (see
            `callbacks.IterativeFreezing`).
        """

    def num_bits(self, options: WeightOptions) -> int:
        """Bits that a code takes in the file; 4 or fewer are stored in 4 where LiteRT can."""
        return options.num_bits

    def limits(self, options: WeightOptions) -> tuple[str, ...]:
        """What of it no `.tflite` can hold: such a model trains, and its export is refused."""
        return ()

    def describe(self, options: WeightOptions) -> str:
        """What a printed plan says of it."""
        return f"int{self.num_bits(options)} {granularity(options)}, {type(self).__name__}"
