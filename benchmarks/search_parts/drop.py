"""The smallest file that loses no more than a point of accuracy on the validation data.

The drop is measured again on the test set, which no step has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tfcompress as tfc
from benchmarks.search_parts.measure import file_row, float_row
from benchmarks.search_parts.nets import RATE, Net

MAX_DROP = 0.01
ROWS = ("float", "max_drop=0.01")


def measure(name: str, net: Net, seed: int, epochs: int) -> Mapping[str, Any]:
    """The figures of a row."""
    if name == "float":
        return float_row(net)
    found = tfc.search(
        net.model,
        net.batches(seed),
        net.validation,
        max_drop=MAX_DROP,
        epochs=epochs,
        learning_rate=RATE,
        seed=seed,
        verbose=0,
    )
    print(found, flush=True)
    best = found.best
    return {
        **file_row(found.model, net),
        "predicted": f"{best.point.loss:.4g}",
        "divergence": f"{best.divergence:.4g}",
        "bytes_error": f"{100 * best.num_bytes_error:.2f}",
        "drop": f"{100 * best.drop.mean:.2f}",
        "bound": f"{100 * best.drop.bound:.2f}",
        "trials": len(found.candidates),
    }
