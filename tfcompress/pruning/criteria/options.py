"""How criteria read the data that they need."""

from __future__ import annotations

import dataclasses

from tfcompress.pruning.criteria.statistics import Loss


@dataclasses.dataclass(frozen=True)
class ScoringOptions:
    """How a criterion that needs gradients or activations is computed from `data`.

    Attributes:
        num_batches: Number of batches that each scoring reads, >= 1.
        batch_size: Batch size where `data` is a tuple of arrays, >= 1.
        loss: `loss(model, x, y, sample_weight)` for gradients; by default the compiled loss.

    Raises:
        ValueError: A number below 1.

    Example:
        >>> tfc.ScoringOptions(num_batches=8, batch_size=32).batch_size
        32
    """

    num_batches: int = 4
    batch_size: int = 128
    loss: Loss | None = None

    def __post_init__(self):
        for name in ("num_batches", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1. Received: {name}={value!r}")


#: The default of `scoring=`.
DEFAULT_SCORING = ScoringOptions()
