"""Between real values and the integer codes that a quantized tensor holds."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """An input or output of a signature.

    Attributes:
        name: The signature's own name for it.
        index: Tensor index in the signature's subgraph.
        shape: Shape, batch of 1 included.
        dtype: NumPy type.
        scale: Quantization scale; 0.0 where it is not quantized.
        zero_point: Quantization zero point; 0 where it is not quantized.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: float
    zero_point: int

    @property
    def is_quantized(self) -> bool:
        """Whether it holds integer codes of real values."""
        return self.scale > 0.0

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: without the batch of 1, if it has one."""
        return self.shape[1:] if self.shape[:1] == (1,) else self.shape


def quantize(x: np.ndarray, scale: float, zero_point: int, dtype: np.dtype) -> np.ndarray:
    """Returns `clip(round(x / scale) + zero_point)`, halves rounded to even, in float32.

    Args:
        x: Real values of any shape; infinities are clipped.
        scale: Positive scale.
        zero_point: Code of the real value 0.
        dtype: Integer type of the codes; its range is the clipping range.

    Raises:
        ValueError: If `x` holds NaN, which has no code.
    """
    x = np.asarray(x, np.float32)
    if np.isnan(x).any():
        raise ValueError("Expected numbers to quantize. Received: an array that holds NaN")
    limits = np.iinfo(dtype)
    codes = np.rint(x / np.float32(scale)).astype(np.float64) + zero_point
    return np.clip(codes, limits.min, limits.max).astype(dtype)


def dequantize(codes: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Returns `(codes - zero_point) * scale` as float32."""
    return (codes.astype(np.int64) - zero_point).astype(np.float32) * np.float32(scale)


def random_codes(info: TensorInfo, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Returns random values for an input, of shape `(num_samples, *info.shape[1:])`.

    Quantized inputs get codes over their whole range, floats lie in -1..1, and integers that are
    not quantized (token numbers, say) are 0, the one value that is surely valid.
    """
    shape = (num_samples, *info.shape[1:])
    if info.is_quantized:
        limits = np.iinfo(info.dtype)
        return rng.integers(limits.min, limits.max, shape, info.dtype, endpoint=True)
    if info.dtype.kind == "f":
        return rng.uniform(-1.0, 1.0, shape).astype(info.dtype)
    return np.zeros(shape, info.dtype)


def cast_integers(x: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Returns integers in the type of an input; a `ValueError` if one does not fit in it."""
    if info.dtype.kind in "iu" and x.size:
        limits = np.iinfo(info.dtype)
        if x.min() < limits.min or x.max() > limits.max:
            raise ValueError(
                f"Expected codes in {limits.min}..{limits.max} for the input {info.name!r} of "
                f"type {info.dtype}. Received: {x.dtype} from {x.min()} to {x.max()}. Pass real "
                "values as floats to have them quantized"
            )
    return x.astype(info.dtype)
