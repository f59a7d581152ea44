"""The steps from raw data to the input of a model, as the card of a file names them.

Each step is a dict with an `op` and its arguments:

- `resize`: `height`, `width`; `method` (`"bilinear"`, `"nearest"` or `"bicubic"`) and `antialias`
  may be left out.
- `center_crop`: `height`, `width`.
- `color`: `order`, one of `"RGB"`, `"BGR"` and `"gray"`.
- `rescale`: x · `scale` + `offset`, each a number or a list of one per channel; `offset` may be
  left out.
- `normalize`: (x − `mean`) / √`variance`, likewise.
- `custom`: a `description` of what the app does itself, and whatever else it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(map(_is_number, value))
    return _is_number(value)


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in names, " or ".join(map(repr, names))


_SIZE = (_is_size, "a whole number of 1 or more")
_NUMBERS = (_is_numbers, "a number, or a list of one per channel")
_TEXT = (lambda value: isinstance(value, str) and bool(value), "a text")
_FLAG = (lambda value: isinstance(value, bool), "True or False")

#: op → argument → (check, what it is). Arguments of `_OPTIONAL` may be left out.
_STEPS: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "resize": {
        "height": _SIZE,
        "width": _SIZE,
        "method": _one_of("bilinear", "nearest", "bicubic"),
        "antialias": _FLAG,
    },
    "center_crop": {"height": _SIZE, "width": _SIZE},
    "color": {"order": _one_of("RGB", "BGR", "gray")},
    "rescale": {"scale": _NUMBERS, "offset": _NUMBERS},
    "normalize": {"mean": _NUMBERS, "variance": _NUMBERS},
    "custom": {"description": _TEXT},
}
_OPTIONAL = {"method", "antialias", "offset"}


def check_preprocessing(steps: Any) -> None:
    """Raises `ValueError` unless `steps` are as the table of this module says."""
    if isinstance(steps, str | Mapping) or not isinstance(steps, Sequence):
        raise ValueError(
            f"Expected preprocessing as a list of steps. Received: {steps!r}. For example "
            '[{"op": "rescale", "scale": 1 / 255}]'
        )
    for step in steps:
        op = step.get("op") if isinstance(step, Mapping) else None
        if not isinstance(op, str) or op not in _STEPS:
            raise ValueError(
                f"Expected each step of preprocessing as a dict with an 'op' of {list(_STEPS)}. "
                f"Received: {step!r}. What has no such form is "
                '{"op": "custom", "description": "…"}'
            )
        _check_arguments(op, step)


def _check_arguments(op: str, step: Mapping[str, Any]) -> None:
    wanted = _STEPS[op]
    unknown = set(step) - {"op", *wanted} if op != "custom" else set()
    missing = set(wanted) - set(step) - _OPTIONAL
    if unknown or missing:
        raise ValueError(
            f"Expected the step {op!r} with {', '.join(wanted)}. Received: {dict(step)!r}. "
            f"{f'Add {sorted(missing)}' if missing else f'Leave out {sorted(unknown)}'}"
        )
    for name, (is_right, what) in wanted.items():
        if name in step and not is_right(step[name]):
            raise ValueError(
                f"Expected {name!r} of the step {op!r} to be {what}. Received: {step[name]!r}"
            )
