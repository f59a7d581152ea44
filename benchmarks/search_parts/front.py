"""Files that `search` finds within budgets, beside the same compression of every layer.

All are trained alike: samples, epochs, learning rate, teacher; of each budget the better one of two
candidates (`--trials`) is taken, on the validation data. A budget is `bytes=N` or `gzip=N` of
the file, or `macs=S`, a share of the multiply-accumulates; for bytes few bits are packed in
convolutions too. Uniform rows are int8, 4 bits, or half of the multiply-accumulates in int8: by
one ranking of channels by size as `shrink` does it, or with the same share of every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tfcompress as tfc
from benchmarks.search_parts.measure import file_row, float_row
from benchmarks.search_parts.nets import RATE, Net
from tfcompress.analysis.costs.budgets import Budget
from tfcompress.analysis.search.search import SEARCH_OPTIONS

#: What `search` chooses from beside its own options.
RANKS = ("rank=0.5", "rank=0.25")

#: Compression of everything alike.
UNIFORM: dict[str, list[dict[str, Any]]] = {
    "int8": [{"quantize": {"default": "int8"}}],
    "int4": [{"quantize": {"default": "int4"}}],
    "int4 packed": [{"quantize": {"default": "int4-packed"}}],
    "half width": [{"shrink": {"target_macs": 0.5}}, {"quantize": {"default": "int8"}}],
    "half width everywhere": [
        {"shrink": {"target_macs": 0.5, "ranking": "uniform"}},
        {"quantize": {"default": "int8"}},
    ],
}
#: What is measured where no rows are named.
ROWS = (
    *("float", *UNIFORM),
    *("bytes=45000", "macs=0.5", "bytes=30000", "bytes=60000", "bytes=75000"),
)


def budget(name: str) -> Budget:
    """The budget that a row names."""
    kind, _, number = name.partition("=")
    if kind == "macs":
        return tfc.Macs(float(number))
    if kind not in ("bytes", "gzip"):
        raise ValueError(
            f"Expected one of {', '.join(('float', *UNIFORM))}, or bytes=, gzip= or macs= and a "
            f"number. Received: {name!r}."
        )
    return tfc.Bytes(float(number), gzip=kind == "gzip")


def measure(name: str, net: Net, seed: int, epochs: int, trials: int = 2) -> Mapping[str, Any]:
    """The figures of a row."""
    if name == "float":
        return float_row(net)
    if name in UNIFORM:
        training = {"train": {"epochs": epochs, "learning_rate": RATE, "seed": seed}}
        recipe = tfc.Recipe([*UNIFORM[name], {"distill": {}}, training])
        return file_row(recipe.run(net.model, net.batches(seed), verbose=0), net)
    limit = budget(name)
    found = tfc.search(
        net.model,
        net.batches(seed),
        net.validation,
        budget=limit,
        packed=isinstance(limit, tfc.Bytes),
        options=(*SEARCH_OPTIONS, *RANKS),
        epochs=epochs,
        learning_rate=RATE,
        trials=trials,
        seed=seed,
        verbose=0,
    )
    print(found, flush=True)
    best = found.best
    together = {
        "predicted": f"{best.point.loss:.4g}",
        "divergence": f"{best.divergence:.4g}",
        "bytes_error": f"{100 * best.num_bytes_error:.2f}",
        "trials": len(found.candidates),
    }
    return {**file_row(found.model, net), **together}
