"""Kernels as groups of weights: which groups stay, and the axes of positions, inputs, outputs."""

from __future__ import annotations

import numpy as np

from tfcompress.model.kernels import KernelSpec


def keep_count(size: int, sparsity: float) -> int:
    """How many of `size` groups stay: `round(size · (1 - sparsity))`, and never fewer than 1."""
    return max(1, round(size * (1.0 - sparsity)))


def keep_highest(scores: np.ndarray, count: int, alive: np.ndarray | None = None) -> np.ndarray:
    """Marks the `count` highest scores; ties go to the lower index.

    Args:
        scores: One-dimensional array without NaN.
        count: Number of entries to mark.
        alive: Boolean array; every alive entry ranks before every other one.

    Returns:
        A boolean array with exactly `count` True entries.
    """
    if alive is not None and not alive.all():
        living = np.flatnonzero(alive)
        keep = np.zeros(scores.size, bool)
        if count <= living.size:
            keep[living[keep_highest(scores[living], count)]] = True
        else:
            keep[living] = True
            dead = np.flatnonzero(~alive)
            keep[dead[keep_highest(scores[dead], count - living.size)]] = True
        return keep
    if count >= scores.size:
        return np.ones(scores.size, bool)
    if count <= 0:
        return np.zeros(scores.size, bool)
    threshold = np.partition(scores, scores.size - count)[scores.size - count]
    keep = scores > threshold
    ties = np.flatnonzero(scores == threshold)
    keep[ties[: count - int(keep.sum())]] = True
    return keep


def channel_view(array: np.ndarray, spec: KernelSpec) -> np.ndarray:
    """Rearranges a kernel to `(positions, inputs, outputs)`."""
    return np.transpose(array, _permutation(array.ndim, spec)).reshape(
        view_shape(array.shape, spec)
    )


def from_channel_view(view: np.ndarray, shape: tuple[int, ...], spec: KernelSpec) -> np.ndarray:
    """The inverse of `channel_view`."""
    order = _permutation(len(shape), spec)
    return np.transpose(view.reshape([shape[a] for a in order]), np.argsort(order))


def view_shape(shape: tuple[int, ...], spec: KernelSpec) -> tuple[int, int, int]:
    """The shape of `channel_view` for a kernel of this shape."""
    inputs = int(np.prod([shape[a] for a in spec.input_axes], dtype=int))
    outputs = int(np.prod([shape[a] for a in spec.output_axes], dtype=int))
    return int(np.prod(shape, dtype=int)) // (inputs * outputs), inputs, outputs


def _permutation(ndim: int, spec: KernelSpec) -> list[int]:
    inputs = [a % ndim for a in spec.input_axes]
    outputs = [a % ndim for a in spec.output_axes]
    rest = [a for a in range(ndim) if a not in inputs + outputs]
    return rest + inputs + outputs
