"""What a layer does once for all steps of a loop, instead of at each (see `looped`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf


class Stepwise:
    """Mixin for layers that compute something which is the same at every step of a loop."""

    @contextlib.contextmanager
    def over_steps(self, calls: Sequence[int], training: bool) -> Iterator[None]:
        """Within it, the layer is called in the body of a loop; what is common is computed now.

        Args:
            calls: The indices of its calls in the body.
            training: Whether they are calls in training.
        """
        yield

    def seen(self) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Smallest and largest value of what each call of this step has observed, scalars."""
        return []

    def take_seen(self, extremes: tf.Tensor) -> None:
        """Called after the loop, where it observes anything.

        Args:
            extremes: Smallest and largest value over all steps, (number of `seen`, 2).
        """
