"""One option of one layer: its divergence, and the accuracy that the file loses, untrained."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import tfcompress as tfc
from benchmarks.search_parts.measure import file_row
from benchmarks.search_parts.nets import Net

OPTIONS = ("int4", "int2", "sparsity=0.5", "sparsity=0.8", "channels=0.75", "channels=0.5")
SAMPLES = 256


@functools.lru_cache(maxsize=1)
def _table(net: Net) -> tfc.Sensitivity:
    return tfc.sensitivity(net.model, _few(net), options=OPTIONS, verbose=0)


@functools.lru_cache(maxsize=1)
def _baseline(net: Net) -> float:
    return tfc.evaluate_file(net.model, net.model, net.test)


def _few(net: Net) -> np.ndarray:
    return net.train[0][:SAMPLES].astype(np.float32)


def rows(net: Net) -> Sequence[str]:
    """`layer: option` of every row."""
    return [f"{row.target}: {row.option}" for row in _table(net)]


def measure(name: str, net: Net, seed: int, epochs: int) -> Mapping[str, Any]:
    """The figures of a row."""
    del seed, epochs
    row = next(row for row in _table(net) if f"{row.target}: {row.option}" == name)
    kind, _, value = row.option.partition("=")
    stages: list[dict[str, Any]] = [{"quantize": {"default": "int8"}}]
    if kind == "channels":
        stages.insert(0, {"shrink": {"channels": {row.target: float(value)}}})
    elif kind == "sparsity":
        stages.insert(0, {"prune": {"sparsity": {row.target: float(value)}}})
    else:
        preset = "int4" if kind == "int4" else "w2a8"
        stages = [{"quantize": {"default": "int8", "layers": {row.target: preset}}}]
    few = _few(net)
    small = tfc.Recipe(stages).run(net.model, (few, np.zeros(len(few), int)), verbose=0)
    found = file_row(small, net)
    lost = 100 * _baseline(net) - float(found["accuracy"])
    return {**found, "divergence": f"{row.divergence:.6g}", "drop": f"{lost:.2f}"}


def correlation(rows: Sequence[Mapping[str, str]]) -> float:
    """Spearman's rank correlation between divergence and accuracy lost."""
    from scipy.stats import spearmanr

    pairs = [(float(row["divergence"]), float(row["drop"])) for row in rows]
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)
