"""Batches of arrays in a random order that follows from a seed and the number of the epoch."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np


class ShuffledBatches(keras.utils.PyDataset):
    """Shuffled batches of arrays, in an order that a restarted training finds again.

    The order of epoch e is that of NumPy's generator seeded by (`seed`, e). Keras' own shuffling,
    and that of `tf.data`, goes on from a state that ends with the process: give `shuffle=False` to
    `fit`, which would put the batches into another order. With
    `callbacks.BackupAndRestore(..., data=batches)`, which sets `epoch`, a training goes on in the
    order in which it was interrupted; without it, each epoch of `fit` raises `epoch` by one. A loop
    of one's own sets `epoch`.

    Args:
        x: Inputs: an array, or a list or dict of arrays.
        y: Targets, likewise, or `None`.
        sample_weight: One weight per sample, likewise, or `None`.
        batch_size: Samples to a batch; the last may have fewer.
        seed: A whole number from 0 on.
        drop_remainder: Leave out a last batch of fewer samples.

    Attributes:
        epoch: The epoch whose order the batches are in.
        in_order: Whether the batches of this epoch were asked for one after the other.

    Raises:
        ValueError: Arrays of different lengths, or `batch_size` below 1.

    Example:
        >>> batches = tfc.ShuffledBatches(np.arange(6.0), batch_size=3)
        >>> first = np.concatenate([batches[0][0], batches[1][0]])
        >>> np.sort(first).tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int = 32,
        seed: int = 0,
        drop_remainder: bool = False,
    ) -> None:
        # Without a thread, which would draw batches of the next epoch ahead of time.
        super().__init__(workers=0)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"Expected batch_size from 1 on. Received: {batch_size!r}.")
        given = [x, y, sample_weight]
        while given[-1] is None:
            given.pop()
        self._data = keras.tree.map_structure(
            lambda a: None if a is None else np.asarray(a), tuple(given)
        )
        lengths = {len(a) for a in keras.tree.flatten(self._data) if a is not None}
        if len(lengths) != 1:
            raise ValueError(f"Expected arrays of one length. Received: lengths {sorted(lengths)}.")
        self.num_samples = lengths.pop()
        self.batch_size, self.seed, self.drop_remainder = batch_size, seed, drop_remainder
        self.epoch = 0
        self.in_order = True
        self._next: int | None = None
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        exact = self.num_samples / self.batch_size
        return math.floor(exact) if self.drop_remainder else math.ceil(exact)

    def __getitem__(self, index: int) -> tuple:
        if self._order is None or self._order[0] != self.epoch:
            random = np.random.default_rng((self.seed, self.epoch))
            self._order = self.epoch, random.permutation(self.num_samples)
        if self._next is not None:
            self.in_order &= index == self._next
            self._next += 1
        start = index * self.batch_size
        rows = self._order[1][start : start + self.batch_size]
        return keras.tree.map_structure(lambda a: None if a is None else a[rows], self._data)

    def on_epoch_begin(self) -> None:
        # Before it, Keras looks at some batches for their shapes.
        self.in_order, self._next = True, 0

    def on_epoch_end(self) -> None:
        # Keras calls it after its look at some batches, too.
        if self._next is not None:
            self.epoch, self._next = self.epoch + 1, None
