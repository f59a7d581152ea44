"""Latency of several files side by side.

The speed of a shared machine drifts by more than the candidates differ. So they are run in turns,
and the result is the ratio within one round.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping

import numpy as np

from tfcompress.export.files import PathOrBytes
from tfcompress.export.runtime.runner import Runner
from tfcompress.tables import Printable

_BLOCKS_PER_TURN = 3


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Latency over the reference's in the same round: median and quartiles over the rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.lower_quartile:.3f}, {self.upper_quartile:.3f}]"


@dataclasses.dataclass(frozen=True)
class LatencyComparison(Printable):
    """What `compare_latency` measured.

    Attributes:
        reference: Name of the candidate that ratios are relative to.
        medians: Name → median milliseconds of one run.
        ratios: Name → ratio to the reference, whose own is 1.
        num_threads: Threads of every run.
        runs: Number of rounds.
    """

    reference: str
    medians: Mapping[str, float]
    ratios: Mapping[str, Ratio]
    num_threads: int
    runs: int

    def __str__(self) -> str:
        width = max(map(len, self.medians))
        lines = [
            f"{name:{width}}  {self.medians[name]:9.3f} ms  x {self.ratios[name]}"
            for name in self.medians
        ]
        heading = (
            f"median of {self.runs} interleaved rounds, {self.num_threads} thread(s); "
            f"ratio to {self.reference} [quartiles]"
        )
        return "\n".join([heading, *lines])


def compare_latency(
    candidates: Mapping[str, PathOrBytes | Callable[[], object]],
    num_threads: int = 1,
    runs: int = 100,
    *,
    reference: str | None = None,
    min_block_ms: float = 1.0,
    seed: int = 0,
) -> LatencyComparison:
    """Measures single-sample latency of several models in turns.

    In every round each candidate has its turn, in an order that rotates from round to round. A
    turn is three blocks, each of one run or as many as fill `min_block_ms`, and the fastest block
    counts: another process may have held the CPU during the others.

    Args:
        candidates: Name → path or bytes of a `.tflite`, or a function that runs a model once.
        num_threads: Threads of the runtime; functions choose their own.
        runs: Number of rounds, 1 or more.
        reference: Name that ratios are relative to; the first by default.
        min_block_ms: Shortest time, in milliseconds, that is measured in one go.
        seed: Seed of the random inputs.

    Returns:
        Medians in milliseconds, and ratios with their quartiles.

    Raises:
        ValueError: If there are no candidates, `reference` is none of them, or `runs` < 1.
    """
    if not candidates:
        raise ValueError("Expected at least one model to time. Received: candidates={}")
    reference = next(iter(candidates)) if reference is None else reference
    if reference not in candidates:
        raise ValueError(f"Expected a reference among {sorted(candidates)}. Received: {reference=}")
    if runs < 1:
        raise ValueError(f"Expected runs of 1 or more. Received: {runs=}")
    functions = {
        name: model if callable(model) else _runner(model, num_threads, seed)
        for name, model in candidates.items()
    }
    repeats = {name: _repeats(run, min_block_ms) for name, run in functions.items()}
    names = list(functions)
    times = {name: np.empty(runs) for name in names}
    for i in range(runs):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name][i] = _turn_ms(functions[name], repeats[name])
    return LatencyComparison(
        reference=reference,
        medians={name: float(np.median(times[name])) for name in names},
        ratios={name: paired_ratio(times[name], times[reference]) for name in names},
        num_threads=num_threads,
        runs=runs,
    )


def paired_ratio(times: np.ndarray, reference: np.ndarray) -> Ratio:
    """Returns median and quartiles of `times / reference`, round by round."""
    lower, median, upper = np.percentile(np.asarray(times) / np.asarray(reference), [25, 50, 75])
    return Ratio(float(median), float(lower), float(upper))


def _runner(model: PathOrBytes, num_threads: int, seed: int) -> Callable[[], object]:
    return Runner(model, num_threads=num_threads).prepare_timing(seed)


def _repeats(run: Callable[[], object], min_block_ms: float) -> int:
    for _ in range(3):
        run()
    return max(1, math.ceil(min_block_ms / max(_turn_ms(run, 1), 1e-6)))


def _turn_ms(run: Callable[[], object], repeats: int) -> float:
    return min(_block_ms(run, repeats) for _ in range(_BLOCKS_PER_TURN))


def _block_ms(run: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) * 1e3 / repeats
