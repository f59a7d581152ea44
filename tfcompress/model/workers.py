"""Several workers: what they tell each other outside of a train step."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.finite import NotFinite

Arrays = Sequence[np.ndarray | None]


def several_workers(strategy: Any) -> bool:
    """Whether the replicas of a strategy are on several workers, which talk by a network."""
    is_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return is_workers and strategy.num_replicas_in_sync > 1


def gather(row: np.ndarray, strategy: tf.distribute.Strategy) -> np.ndarray:
    """The rows of all replicas, `(replicas, n)`, in their order. All workers must call it.

    Args:
        row: Numbers of this worker, `(n,)`, as many on all workers; float32 or int32.
        strategy: For which `several_workers` is true.
    """
    gathered = _gathering(strategy)(tf.convert_to_tensor(row))
    return strategy.experimental_local_results(gathered)[0].numpy()


@functools.lru_cache(maxsize=1)
def _gathering(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], Any]:
    def of_replica(row: tf.Tensor) -> tf.Tensor:
        return tf.distribute.get_replica_context().all_gather(row[None], axis=0)

    return tf.function(lambda row: strategy.run(of_replica, args=(row,)), reduce_retracing=True)


def mean_over_workers(
    strategy: Any,
    shapes: Sequence[tuple[int, ...]],
    compute: Callable[[], tuple[Arrays, int]],
) -> list[np.ndarray | None]:
    """Arrays that each worker computes from its own batches, averaged over all batches.

    All workers get the same arrays: those of one worker alone, to the bit, where all have the same
    batches. A worker without batches takes part with none. Without several workers it is `compute`.

    Args:
        strategy: The strategy of a model.
        shapes: Of the arrays.
        compute: Returns the arrays, float32 or `None`, and from how many batches. All workers have
            `None` in the same places.

    Raises:
        NotFinite: On all workers, where `compute` raises it on one.
        ValueError: No worker has a batch.
    """
    if not several_workers(strategy):
        arrays, count = compute()
        _check_batches(count)
        return list(arrays)
    failure = None
    try:
        arrays, count = compute()
    except NotFinite as error:
        arrays, count, failure = [], -1, error
    counts = gather(np.array([count], np.int32), strategy)[:, 0]
    if (counts < 0).any():
        raise failure or NotFinite(
            "Expected finite numbers on all workers. Received: others on the worker of replica "
            f"{int(np.argmax(counts < 0))}."
        )
    _check_batches(int(counts.sum()))
    parts: list[np.ndarray] = [np.zeros(shape) for shape in shapes]
    if count:
        filled = zip(arrays, parts, strict=True)
        parts = [np.full_like(zero, np.inf) if a is None else a for a, zero in filled]
    row = np.concatenate([np.zeros(0), *(part.reshape(-1) for part in parts)]).astype(np.float32)
    rows = gather(row, strategy)[counts > 0].astype(np.float64)
    # In float64 the mean of equal float32 is that number.
    mean = np.average(rows, axis=0, weights=counts[counts > 0]).astype(np.float32)
    ends = np.cumsum([part.size for part in parts])[:-1]
    split = [m.reshape(s) for m, s in zip(np.split(mean, ends), shapes, strict=True)]
    return [None if part.size and np.isposinf(part).all() else part for part in split]


def _check_batches(count: int) -> None:
    if not count:
        raise ValueError(
            "`data` yielded no batch with a sample; pass something that can be iterated again."
        )


def check_same_weights(model: keras.Model) -> None:
    """Compares the weights of a model on all workers, which must all call it.

    Raises:
        ValueError: They are not equal to the bit.
    """
    strategy = model.distribute_strategy
    if not several_workers(strategy) or not model.weights:
        return
    sums = [zlib.crc32(np.asarray(weight).tobytes()) for weight in model.weights]
    rows = gather(np.array(sums, np.uint32).view(np.int32), strategy)
    differ = [w.path for w, column in zip(model.weights, rows.T, strict=True) if np.ptp(column)]
    if differ:
        raise ValueError(
            f"Expected a model of the same weights on all workers. Received: {len(differ)} of "
            f"{len(sums)} that differ, {', '.join(differ[:3])} first. Give every worker the same "
            "seeds, files and calibration_data."
        )
