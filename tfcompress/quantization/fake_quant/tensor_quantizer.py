"""The interface by which layers round their sums as the quantizer of a tensor does."""

from __future__ import annotations

import abc
from collections.abc import Callable

import tensorflow as tf

from tfcompress.model.linking import Linked
from tfcompress.quantization.fake_quant.affine import LARGEST_BIAS, LARGEST_INT64_BIAS


class TensorQuantizer(Linked, abc.ABC):
    """Mixin of the layer that rounds a tensor to codes."""

    @property
    @abc.abstractmethod
    def scale(self) -> tf.Tensor:
        """The scale of the codes; 0 before a range is known."""

    @property
    @abc.abstractmethod
    def zero_point(self) -> tf.Tensor:
        """The code of real 0."""

    @property
    def is_int16(self) -> bool:
        """Whether the codes have 16 bits, and LiteRT's kernels of 16-bit activations round them."""
        return False

    @property
    def largest_bias(self) -> float:
        """The largest code of a bias of what reads the tensor."""
        return LARGEST_INT64_BIAS if self.is_int16 else LARGEST_BIAS

    @abc.abstractmethod
    def active_scale(self) -> tf.Tensor:
        """The scale of the codes that the tensor holds now; 0 while it passes unchanged."""

    @abc.abstractmethod
    def round_by(self, codes: Callable[[tf.Tensor], tf.Tensor], otherwise: tf.Tensor) -> tf.Tensor:
        """`codes(scale)` · scale where this tensor is rounded to nearest, else `otherwise`."""

    def round_sum(self, total: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Rounds an int32 sum to this tensor's grid just as the runtime does, without clipping.

        round(total · (step / scale)) · scale, where the runtime too multiplies in float32 by the
        float32 ratio and rounds to even. Rounding the real value total · step instead would fall on
        the other side of a half once in some ten thousand values, and deep networks amplify that.

        Args:
            total: Whole numbers, float32 of any shape.
            step: Value of one unit of the sum, per channel or a scalar, float32.
        """
        return self.round_by(lambda scale: tf.round(total * (step / scale)), total * step)
