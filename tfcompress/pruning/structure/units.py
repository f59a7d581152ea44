"""Units: sets of channels that can only be removed together, kept by union-find."""

from __future__ import annotations

import numpy as np


class Units:
    """Every channel that a layer makes is a unit; what must go together is joined.

    A pinned unit cannot be removed, and neither can what is joined to it. The first reason that
    was given stays with it.
    """

    def __init__(self):
        self._parent: list[int] = []
        self._reason: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, count: int) -> np.ndarray:
        """Makes `count` units and returns their labels."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, labels: np.ndarray) -> np.ndarray:
        """The representatives of the units with these labels, of the same shape."""
        unique, inverse = np.unique(labels, return_inverse=True)
        roots = np.array([self._root(int(label)) for label in unique], np.int64)
        return roots[inverse].reshape(np.shape(labels))

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """Joins the units of two arrays of labels, place by place."""
        pairs = np.stack([np.ravel(first), np.ravel(second)], 1)
        for a, b in np.unique(pairs, axis=0):
            a, b = self._root(int(a)), self._root(int(b))
            if a == b:
                continue
            # The older one stays the representative, so groups come in the order of the graph.
            a, b = min(a, b), max(a, b)
            self._parent[b] = a
            reason = self._reason.pop(b, None)
            if reason is not None:
                self._reason.setdefault(a, reason)

    def pin(self, labels: np.ndarray, reason: str) -> None:
        """Keeps units whole."""
        for label in np.unique(labels):
            self._reason.setdefault(self._root(int(label)), reason)

    def reason(self, label: int) -> str | None:
        """Why a unit is pinned; `None` where it may be removed."""
        return self._reason.get(self._root(int(label)))

    def _root(self, label: int) -> int:
        root = label
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[label] != root:
            self._parent[label], label = root, self._parent[label]
        return root
