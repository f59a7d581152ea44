"""What a recipe may hold, and messages that name the key and the line."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tfcompress.analysis.costs.instructions import MULTIPLIED_AT_ONCE
from tfcompress.analysis.recipes.lines import Path
from tfcompress.analysis.recipes.named import RATES, SCHEDULES, check_callbacks, check_optimizer
from tfcompress.export.flatbuffer.editing import is_op_name
from tfcompress.factorization.forms import METHODS
from tfcompress.quantization.schemes import PRESETS

Check = Callable[[Any], str]

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 200, 200
_shown = _REPR.repr


def _number(low: float, high: float = float("inf"), *, whole: bool = False) -> Check:
    def check(value: Any) -> str:
        kinds = int if whole else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        fits = is_number and low <= value <= high and value < float("inf")
        kind = "a whole number" if whole else "a number"
        limit = f" from {low:g} to {high:g}" if high < float("inf") else f", {low:g} or more"
        return "" if fits else f"{kind}{limit}"

    return check


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
        wrong = [f"{_shown(name)}: {check(item)}" for name, item in value.items() if check(item)]
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
    if not isinstance(value, Mapping):
        return "null, or operators and their milliseconds per million multiply-accumulates"
    unknown = [name for name in value if not is_op_name(name)]
    if unknown:
        return f"operators of LiteRT, such as 'CONV_2D' (not {_shown(unknown[0])})"
    wrong = [name for name, item in value.items() if _number(0)(item)]
    return f"a number, 0 or more, for the operator {_shown(wrong[0])}" if wrong else ""


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
        "sparsity": _either(_SHARE, _by_layer(_SHARE)),
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
    "Latency": {"limit": _number(0), "table": _prices},
    "Instructions": {"limit": _share_or_count, "cpu": _one_of(MULTIPLIED_AT_ONCE)},
    "PeakMemory": {"limit": _number(1)},
}


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message names the key, and the line in a file."""


class Checker:
    """Checks the values of a recipe.

    Args:
        source: The file, for messages; empty for a recipe from Python.
        lines: The line of each value.
    """

    def __init__(self, source: str = "", lines: Mapping[Path, int] | None = None):
        self.source, self.lines = source, lines or {}

    def check(self, values: Any) -> None:
        """Raises `RecipeError` for the first thing that is wrong."""
        if not isinstance(values, Mapping):
            self.fail((), f"Expected a recipe: keys and values. Received: {_shown(values)}")
        allowed = {*FIELDS, "stages", "budgets"}
        for key, value in values.items():
            self._known(key, allowed, (key,))
            if key in FIELDS:
                self._fits(FIELDS[key], value, (key,))
        if "stages" not in values:
            self.fail((), "Expected the key 'stages' with a list of stages. Received: no such key")
        self._entries(values["stages"], STAGES, "stages")
        self._entries(values.get("budgets", []), BUDGETS, "budgets")
        self._order(values["stages"])

    def fail(self, path: Path, message: str) -> None:
        """Raises `RecipeError` at a key."""
        line = self.lines.get(path)
        place = f"{self.source}, line {line}: " if line else f"{self.source}: "
        raise RecipeError((place if self.source else "") + message + ".")

    def _entries(self, entries: Any, table: Mapping[str, Mapping[str, Check]], name: str) -> None:
        if not isinstance(entries, list | tuple):
            self.fail((name,), f"Expected {name!r} to be a list. Received: {_shown(entries)}")
        for i, entry in enumerate(entries):
            if not isinstance(entry, Mapping) or len(entry) != 1:
                self.fail(
                    (name, i),
                    f"Expected one of {list(table)} and its settings. Received: {_shown(entry)}",
                )
            ((kind, settings),) = entry.items()
            self._known(kind, set(table), (name, i, kind))
            if not isinstance(settings, Mapping):
                self.fail(
                    (name, i, kind), f"Expected settings of {kind!r}. Received: {_shown(settings)}"
                )
            for key, value in settings.items():
                self._known(key, set(table[kind]), (name, i, kind, key), of=kind)
                self._fits(table[kind][key], value, (name, i, kind, key))

    def _pruning(self, i: int, settings: Mapping[str, Any]) -> None:
        """Refuses settings of gradual pruning that do nothing, or that end before they begin."""
        end = settings.get("end_step")
        if end is None:
            for key in ("begin_step", "schedule"):
                if key in settings:
                    self.fail(
                        ("stages", i, "prune", key),
                        f"Expected {key!r} with 'end_step', for gradual pruning. Received: no "
                        "'end_step', which prunes at once",
                    )
        elif end <= settings.get("begin_step", 0):
            self.fail(
                ("stages", i, "prune", "end_step"),
                f"Expected 'end_step' after 'begin_step', which is {settings.get('begin_step', 0)}."
                f" Received: {end}",
            )

    def _order(self, stages: Any) -> None:
        names = [next(iter(stage)) for stage in stages]
        order = list(STAGES)
        places = [order.index(name) for name in names]
        for i in range(1, len(places)):
            if names[i - 1] != "train" and places[i] <= places[i - 1]:
                self.fail(
                    ("stages", i, names[i]),
                    f"Expected stages in the order {order}, each "
                    f"once before 'train'. Received: {names[i]!r} after {names[i - 1]!r}",
                )
        quantized = [i for i, name in enumerate(names) if name == "quantize"]
        late = [
            i
            for i in range(len(names))
            if quantized and i > quantized[0] and names[i] in ("shrink", "factorize", "cluster")
        ]
        if late:
            self.fail(
                ("stages", late[0], names[late[0]]),
                f"Expected {names[late[0]]!r} before 'quantize'. Received: it comes after",
            )
        self._acting(names, stages)

    def _acting(self, names: list[str], stages: Any) -> None:
        """Refuses what acts in training where none follows."""
        for i, (name, stage) in enumerate(zip(names, stages, strict=True)):
            if name == "prune":
                self._pruning(i, stage[name])
            acts = name in ("regularize", "distill") or "end_step" in stage[name]
            if acts and "train" not in names[i:]:
                self.fail(
                    ("stages", i, name),
                    f"Expected a 'train' stage behind {name!r}, which acts in training. Received: "
                    "none",
                )

    def _known(self, key: Any, allowed: set[str], path: Path, of: str = "") -> None:
        if key in allowed:
            return
        near = difflib.get_close_matches(str(key), sorted(allowed), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(allowed)}"
        where = f" in {of!r}" if of else ""
        self.fail(
            path, f"Unknown key {_shown(key)}{where}: {hint}".rstrip("?") + ("?" if near else "")
        )

    def _fits(self, check: Check, value: Any, path: Path) -> None:
        wanted = check(value)
        if wanted:
            self.fail(path, f"Expected {path[-1]!r} to be {wanted}. Received: {_shown(value)}")
