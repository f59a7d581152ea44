"""Patterns: which weights are removed together; they turn scores and a sparsity into a mask.

A pattern groups the weights of a kernel (one weight, a block, a channel). The groups with the
highest summed score stay. Counts are exact, and of equal scores the first one stays.
"""

from __future__ import annotations

import abc
from typing import Any

import keras
import numpy as np

from tfcompress.model.kernels import KernelSpec
from tfcompress.pruning.masks.groups import (
    channel_view,
    from_channel_view,
    keep_count,
    keep_highest,
    view_shape,
)


class Pattern(abc.ABC):
    """Base of the patterns: how weights are grouped.

    A subclass implements `reduce` and `expand`, and is given as `pattern=MyPattern(...)`; one that
    a saved object refers to is registered with `keras.saving.register_keras_serializable`.
    """

    @property
    def sparsity(self) -> float | None:
        """The one sparsity that the finished pattern has; `None` where it may have any."""
        return None

    @abc.abstractmethod
    def reduce(self, scores: np.ndarray, spec: KernelSpec) -> np.ndarray:
        """Sums the scores of each group into a one-dimensional array."""

    @abc.abstractmethod
    def expand(self, keep: np.ndarray, shape: tuple[int, ...], spec: KernelSpec) -> np.ndarray:
        """Returns the mask of shape `shape` in which the groups `keep` (1-D, bool) are True."""

    def fit(self, shape: tuple[int, ...], spec: KernelSpec) -> str | None:
        """Returns why the pattern does not fit a kernel of this shape, or `None` if it does."""
        return None

    def select(self, groups: np.ndarray, sparsity: float, alive: np.ndarray) -> np.ndarray:
        """Chooses the groups that stay at this sparsity; see `keep_highest`."""
        return keep_highest(groups, keep_count(groups.size, sparsity), alive)

    def alive(self, mask: np.ndarray, spec: KernelSpec) -> np.ndarray:
        """Returns which groups have any weight in `mask`."""
        return self.reduce(mask.astype(np.float32), spec) > 0

    def mask(
        self,
        scores: np.ndarray,
        sparsity: float,
        spec: KernelSpec,
        current: np.ndarray | None = None,
    ) -> np.ndarray:
        """Turns scores into a mask.

        Args:
            scores: One score per weight.
            sparsity: Fraction of groups to remove, in [0, 1).
            spec: The axes of the kernel.
            current: The mask in force; its groups rank before removed ones, so that
                masks are nested while the sparsity grows.

        Returns:
            A boolean array of the shape of `scores`.
        """
        groups = self.reduce(scores, spec)
        alive = np.ones(groups.size, bool) if current is None else self.alive(current, spec)
        return self.expand(self.select(groups, sparsity, alive), scores.shape, spec)

    def get_config(self) -> dict[str, Any]:
        """Returns every constructor argument."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Pattern:
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), tuple(self.get_config().items())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


@keras.saving.register_keras_serializable(package="tfcompress")
class Unstructured(Pattern):
    """Every weight by itself."""

    def reduce(self, scores: np.ndarray, spec: KernelSpec) -> np.ndarray:
        return scores.reshape(-1)

    def expand(self, keep: np.ndarray, shape: tuple[int, ...], spec: KernelSpec) -> np.ndarray:
        return keep.reshape(shape)


@keras.saving.register_keras_serializable(package="tfcompress")
class Block(Pattern):
    """Blocks of `height` inputs by `width` outputs.

    In a dense kernel of shape (inputs, outputs) these are the rows and columns, as in tfmot's
    `block_size`; in a convolution every position of the window is such a matrix. LiteRT stores
    its weights with the outputs first: its 1×16 blocks are `Block(16, 1)`.

    Args:
        height: Consecutive inputs in a block, >= 1; must divide the number of inputs.
        width: Consecutive outputs in a block, >= 1; must divide the number of outputs.
    """

    def __init__(self, height: int, width: int):
        if height < 1 or width < 1:
            raise ValueError(
                f"The sides of a block must be >= 1. Received: height={height}, width={width}"
            )
        self.height = int(height)
        self.width = int(width)

    def reduce(self, scores: np.ndarray, spec: KernelSpec) -> np.ndarray:
        view = channel_view(scores, spec)
        positions, inputs, outputs = view.shape
        blocks = view.reshape(
            positions, inputs // self.height, self.height, outputs // self.width, self.width
        )
        return blocks.sum(axis=(2, 4)).reshape(-1)

    def expand(self, keep: np.ndarray, shape: tuple[int, ...], spec: KernelSpec) -> np.ndarray:
        positions, inputs, outputs = view_shape(shape, spec)
        blocks = keep.reshape(positions, inputs // self.height, outputs // self.width)
        view = blocks.repeat(self.height, axis=1).repeat(self.width, axis=2)
        return from_channel_view(view, shape, spec)

    def fit(self, shape: tuple[int, ...], spec: KernelSpec) -> str | None:
        _, inputs, outputs = view_shape(shape, spec)
        if inputs % self.height or outputs % self.width:
            return f"{inputs} inputs × {outputs} outputs do not divide into {self!r}"
        return None

    def get_config(self) -> dict[str, Any]:
        return {"height": self.height, "width": self.width}


@keras.saving.register_keras_serializable(package="tfcompress")
class NOfM(Pattern):
    """`n` non-zeros **kept** of every `m` consecutive weights along the input axis.

    The groups lie along the axis that is innermost in LiteRT's layout: the input channels of a
    dense or convolution kernel. While a schedule's sparsity `s` is still below its final value
    `1 - n/m`, `m - floor(m s)` weights of every group are kept.

    Args:
        n: Weights kept in each group, >= 1.
        m: Size of a group, > n; must divide the number of inputs.

    Raises:
        ValueError: If `n > m` or one of them is below 1.

    Example:
        >>> pattern = tfc.NOfM(n=2, m=4)
        >>> pattern.sparsity
        0.5
        >>> callback = tfc.callbacks.Pruning(tfc.ConstantSparsity(0.5), pattern=pattern)
    """

    def __init__(self, n: int, m: int):
        if not 1 <= n <= m:
            raise ValueError(
                f"`NOfM` keeps n of every m weights: expected 1 <= n <= m. Received: n={n}, m={m}"
            )
        self.n = int(n)
        self.m = int(m)

    @property
    def sparsity(self) -> float:
        """The sparsity of the finished pattern, `1 - n/m`."""
        return 1.0 - self.n / self.m

    def reduce(self, scores: np.ndarray, spec: KernelSpec) -> np.ndarray:
        return np.moveaxis(channel_view(scores, spec), 1, 2).reshape(-1)

    def expand(self, keep: np.ndarray, shape: tuple[int, ...], spec: KernelSpec) -> np.ndarray:
        positions, inputs, outputs = view_shape(shape, spec)
        view = np.moveaxis(keep.reshape(positions, outputs, inputs), 2, 1)
        return from_channel_view(view, shape, spec)

    def select(self, groups: np.ndarray, sparsity: float, alive: np.ndarray) -> np.ndarray:
        kept = max(self.n, self.m - int(np.floor(self.m * sparsity + 1e-6)))
        rows, ranked_alive = groups.reshape(-1, self.m), alive.reshape(-1, self.m)
        order = np.lexsort((-rows, ~ranked_alive), axis=-1)
        keep = np.zeros(rows.shape, bool)
        np.put_along_axis(keep, order[:, :kept], True, axis=-1)
        return keep.reshape(-1)

    def fit(self, shape: tuple[int, ...], spec: KernelSpec) -> str | None:
        if not spec.input_axes:
            return "it does not sum over input channels"
        inputs = view_shape(shape, spec)[1]
        if inputs % self.m:
            return f"{inputs} inputs do not divide into groups of {self.m}"
        return None

    def get_config(self) -> dict[str, Any]:
        return {"n": self.n, "m": self.m}


@keras.saving.register_keras_serializable(package="tfcompress")
class Channels(Pattern):
    """Whole output channels: every weight that feeds one output channel is one group."""

    def reduce(self, scores: np.ndarray, spec: KernelSpec) -> np.ndarray:
        return channel_view(scores, spec).sum(axis=(0, 1))

    def expand(self, keep: np.ndarray, shape: tuple[int, ...], spec: KernelSpec) -> np.ndarray:
        view = np.broadcast_to(keep, view_shape(shape, spec))
        return from_channel_view(view, shape, spec)


_BY_NAME = {"unstructured": Unstructured, "channels": Channels}


def get_pattern(identifier: str | Pattern) -> Pattern:
    """Returns the pattern: `"unstructured"`, `"channels"`, or an instance of any `Pattern`.

    Raises:
        ValueError: If there is no pattern with this name.
    """
    if isinstance(identifier, Pattern):
        return identifier
    if identifier in _BY_NAME:
        return _BY_NAME[identifier]()
    raise ValueError(
        f"`pattern` must be one of {sorted(_BY_NAME)} or a Pattern such as Block(16, 1) or "
        f"NOfM(2, 4). Received: pattern={identifier!r}"
    )
