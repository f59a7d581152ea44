"""The check of a recipe, whose messages name the key and the line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from tfcompress.analysis.recipes.lines import Path
from tfcompress.analysis.recipes.schema import (
    ACTING,
    BUDGETS,
    FIELDS,
    NEEDS,
    ONE_OF,
    STAGES,
    Check,
    shown,
)

# What cannot be done to a quantized model.
_BEFORE_QUANTIZE = ("shrink", "factorize", "cluster")


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
            self.fail((), f"Expected a recipe: keys and values. Received: {shown(values)}")
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
        end = "" if message.endswith("?") else "."
        raise RecipeError((place if self.source else "") + message + end)

    def _entries(self, entries: Any, table: Mapping[str, Mapping[str, Check]], name: str) -> None:
        if not isinstance(entries, list | tuple):
            self.fail((name,), f"Expected {name!r} to be a list. Received: {shown(entries)}")
        for i, entry in enumerate(entries):
            if not isinstance(entry, Mapping) or len(entry) != 1:
                self.fail(
                    (name, i),
                    f"Expected one of {list(table)} and its settings. Received: {shown(entry)}",
                )
            ((kind, settings),) = entry.items()
            self._known(kind, set(table), (name, i, kind))
            if not isinstance(settings, Mapping):
                self.fail(
                    (name, i, kind), f"Expected settings of {kind!r}. Received: {shown(settings)}"
                )
            self._settings(kind, settings, (name, i, kind))

    def _settings(self, kind: str, settings: Mapping[str, Any], path: Path) -> None:
        """Checks the keys of one stage or budget, and what they need of each other."""
        checks = STAGES.get(kind) or BUDGETS[kind]
        for key, value in settings.items():
            self._known(key, set(checks), (*path, key), of=kind)
            self._fits(checks[key], value, (*path, key))
        keys = ONE_OF.get(kind, ())
        given = [key for key in keys if key in settings]
        if keys and len(given) != 1:
            self.fail(
                (*path, given[1]) if given else path,
                f"Expected {'one of ' * (len(keys) > 1)}{', '.join(map(repr, keys))} in {kind!r}. "
                f"Received: {' and '.join(map(repr, given)) or 'no such key'}",
            )
        for key in settings:
            other = NEEDS.get((kind, key))
            if other is not None and other not in settings:
                self.fail(
                    (*path, key),
                    f"Expected {key!r} with {other!r}, without which it does nothing. Received: no "
                    f"{other!r}",
                )
        self._effect(kind, settings, path)

    def _effect(self, kind: str, settings: Mapping[str, Any], path: Path) -> None:
        """Refuses numbers by which a stage does nothing, or ends before it begins."""
        acting = ACTING.get(kind, {})
        if acting and not any(settings.get(key, default) for key, default in acting.items()):
            self.fail(
                path,
                f"Expected {' or '.join(map(repr, acting))} above 0 in {kind!r}. Received: a stage "
                "that does nothing",
            )
        end, begin = settings.get("end_step"), settings.get("begin_step", 0)
        if end is not None and end <= begin:
            self.fail(
                (*path, "end_step"),
                f"Expected 'end_step' after 'begin_step', which is {begin}. Received: {end}",
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
        first = names.index("quantize") if "quantize" in names else len(names)
        for i in range(first + 1, len(names)):
            if names[i] in (*_BEFORE_QUANTIZE, "quantize"):
                self.fail(
                    ("stages", i, names[i]),
                    f"Expected {', '.join(_BEFORE_QUANTIZE)} before 'quantize', and that once. "
                    f"Received: {names[i]!r} after 'quantize'",
                )
        self._acting(names, stages)

    def _acting(self, names: list[str], stages: Any) -> None:
        """Refuses what acts in training where none follows."""
        for i, (name, stage) in enumerate(zip(names, stages, strict=True)):
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
        self.fail(path, f"Unknown key {shown(key)}{where}: {hint}")

    def _fits(self, check: Check, value: Any, path: Path) -> None:
        wanted = check(value)
        if wanted:
            self.fail(path, f"Expected {path[-1]!r} to be {wanted}. Received: {shown(value)}")
