"""The registry of rules: operation class → how channels pass through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from tfcompress.model.declared import channels_like
from tfcompress.model.graph import Node
from tfcompress.pruning.structure.tracer import Axes, Tracer

#: `rule(tracer, node)` returns the axes of the output (a tuple with one entry per axis), a list of
#: them for several outputs, or `None` where this call cannot be followed.
Rule = Callable[[Tracer, Node], "Axes | list[Axes] | None"]
_R = TypeVar("_R", bound=Rule)

_RULES: dict[type | str, Rule] = {}


def register_rule(*kinds: type | str) -> Callable[[_R], _R]:
    """Registers how channels pass through an operation; a decorator.

    A layer of your own, element by element, with one scale per channel:

    ```python
    @register_rule(MyScale)
    def my_scale(tracer, node):
        (x,) = node.inputs
        tracer.member(node.operation, "scale", -1, tracer.of(x)[-1], Role.CHANNEL)
        return tracer.of(x)
    ```

    A layer that treats channels as one of Keras' does needs no rule: it declares
    `channels_like = keras.layers.Identity` (see `tfcompress.model.declared`).

    Args:
        *kinds: Classes, matched exactly (a subclass may do anything with its weights); or names
            of Keras' classes that are not public: `keras.ops` operations, say.
    """

    def register(rule: _R) -> _R:
        for kind in kinds:
            _RULES[kind] = rule
        return rule

    return register


def find_rule(operation: Any) -> Rule | None:
    """The rule of an operation; `None` where there is none."""
    cls = channels_like(operation)
    if cls in _RULES:
        return _RULES[cls]
    # A class of the user's own may have the name of one of Keras.
    return _RULES.get(cls.__name__) if cls.__module__.split(".")[0] == "keras" else None
