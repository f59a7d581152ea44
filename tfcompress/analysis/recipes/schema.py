"""What a recipe may hold: stages, budgets and fields, their keys, and what these may be."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tfcompress.analysis.costs.instructions import MULTIPLIED_AT_ONCE
from tfcompress.analysis.recipes.named import RATES, SCHEDULES, check_callbacks, check_optimizer
from tfcompress.export.flatbuffer.editing import is_op_name
from tfcompress.factorization.forms import METHODS
from tfcompress.quantization.schemes import PRESETS

#: Says what was expected of a value; empty where it fits.
Check = Callable[[Any], str]

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 200, 200
#: A value in a message, cut where it is long.
shown = _REPR.repr

# A number that PyYAML reads as text, for want of a point.
_NO_POINT = re.compile(r"([-+]?[0-9]+)(e[-+]?[0-9]+)", re.IGNORECASE)


def _number(low: float, high: float = float("inf"), *, whole: bool = False) -> Check:
    kind = "a whole number" if whole else "a number"
    limit = f" from {low:g} to {high:g}" if high < float("inf") else f", {low:g} or more"
    kinds = int if whole else (int, float)

    def check(value: Any) -> str:
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if is_number and low <= value <= high and value < float("inf"):
            return ""
        pointless = _NO_POINT.fullmatch(value) if isinstance(value, str) and not whole else None
        hint = f" (in YAML write {pointless[1]}.0{pointless[2]})" if pointless else ""
        return f"{kind}{limit}{hint}"

    return check


def _positive(value: Any) -> str:
    return "" if not _number(0)(value) and value > 0 else "a number above 0"


def _share_below_1(value: Any) -> str:
    fits = not _number(0.0, 1.0)(value) and value < 1
    return "" if fits else "a number from 0 to 1, and below 1"


def _text(value: Any) -> str:
    return "" if isinstance(value, str) and value else "text"


def _flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _scheme(value: Any) -> str:
    known = value is None or (isinstance(value, str) and value in PRESETS)
    return "" if known else f"null (float) or one of {', '.join(sorted(PRESETS))}"


def _one_of(names: Iterable[str]) -> Check:
    def check(value: Any) -> str:
        known = isinstance(value, str) and value in names
        return "" if known else f"one of {', '.join(names)}"

    return check


def _list_of(names: Sequence[str]) -> Check:
    def check(value: Any) -> str:
        fits = isinstance(value, list | tuple) and value and all(item in names for item in value)
        return "" if fits else f"a list of {', '.join(names)}"

    return check


def _by_layer(check: Check) -> Check:
    def each(value: Any) -> str:
        if not isinstance(value, Mapping):
            return "layers and what each gets"
        wrong = [f"{shown(name)}: {check(item)}" for name, item in value.items() if check(item)]
        return f"for the layer {wrong[0]}" if wrong else ""

    return each


def _either(*checks: Check) -> Check:
    def check(value: Any) -> str:
        found = [one(value) for one in checks]
        return "" if "" in found else " or ".join(found)

    return check


def _prices(value: Any) -> str:
    """A latency table, or null for a measurement on this machine."""
    if value is None:
        return ""
    if not isinstance(value, Mapping) or not value:
        return "null, or operators and their milliseconds per million multiply-accumulates"
    unknown = [name for name in value if not is_op_name(name)]
    if unknown:
        return f"operators of LiteRT, such as 'CONV_2D' (not {shown(unknown[0])})"
    wrong = [name for name, item in value.items() if _number(0)(item)]
    return f"a number, 0 or more, for the operator {shown(wrong[0])}" if wrong else ""


def _share_or_count(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = is_number and 0 < value < float("inf") and (value <= 1 or value == int(value))
    return "" if fits else "a share in (0, 1], or a whole number above 1"


_SHARE = _number(0.0, 1.0)

#: Stage → its keys → what they may be. Stages come in this order, and `train` last.
STAGES: dict[str, dict[str, Check]] = {
    "shrink": {
        "channels": _by_layer(_SHARE),
        "target_macs": _SHARE,
        "ranking": _one_of(("global", "uniform")),
    },
    "factorize": {
        "ranks": _either(_number(1, whole=True), _by_layer(_number(1, whole=True))),
        "energy": _SHARE,
        "methods": _list_of(METHODS),
        "target_macs": _SHARE,
    },
    "prune": {
        "sparsity": _either(_share_below_1, _by_layer(_share_below_1)),
        "begin_step": _number(0, whole=True),
        "end_step": _number(1, whole=True),
        "schedule": _one_of(SCHEDULES),
    },
    "regularize": {"l1": _number(0), "l2": _number(0)},
    "cluster": {"num_clusters": _number(2, 256, whole=True)},
    "quantize": {"default": _scheme, "layers": _by_layer(_scheme)},
    "distill": {"temperature": _number(1e-6), "weight": _number(0), "labels": _number(0)},
    "train": {
        "epochs": _number(0, whole=True),
        "learning_rate": _number(0),
        "batch_size": _number(1, whole=True),
        "seed": _number(0, whole=True),
        "optimizer": check_optimizer,
        "learning_rate_schedule": _one_of(RATES),
        "callbacks": check_callbacks,
    },
}

#: Stage or budget → keys, of which it has exactly one.
ONE_OF: dict[str, tuple[str, ...]] = {
    "shrink": ("channels", "target_macs"),
    "factorize": ("ranks", "energy", "target_macs"),
    "prune": ("sparsity",),
    **dict.fromkeys(
        ("Bytes", "Macs", "Parameters", "Latency", "Instructions", "PeakMemory"), ("limit",)
    ),
}

#: Stage, key → another key of it, without which the first does nothing.
NEEDS: dict[tuple[str, str], str] = {
    ("shrink", "ranking"): "target_macs",
    ("prune", "begin_step"): "end_step",
    ("prune", "schedule"): "end_step",
}

#: Stage → keys and what each is by default; where all of them are 0, it does nothing.
ACTING: dict[str, dict[str, float]] = {
    "regularize": {"l1": 0.0, "l2": 0.0},
    "distill": {"weight": 1.0, "labels": 1.0},
}

#: Keys of a recipe beside its stages.
FIELDS: dict[str, Check] = {
    "version": _number(1, 1, whole=True),
    "name": _text,
    "model": _text,
    "data": _text,
    "metric": _text,
    "max_drop": _number(0),
    "calibration_samples": _number(1, whole=True),
}

#: Budget → its keys.
BUDGETS: dict[str, dict[str, Check]] = {
    "Bytes": {"limit": _number(1), "gzip": _flag},
    "Macs": {"limit": _share_or_count},
    "Parameters": {"limit": _share_or_count},
    "Latency": {"limit": _positive, "table": _prices},
    "Instructions": {"limit": _share_or_count, "cpu": _one_of(MULTIPLIED_AT_ONCE)},
    "PeakMemory": {"limit": _number(1)},
}
