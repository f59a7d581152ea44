"""Which kernels a technique acts on, chosen by name, regular expression, type or predicate."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfcompress.model import lookup
from tfcompress.model.kernels import Kernel, compressible_kernels, iterate_layers, layer_kernels
from tfcompress.model.paths import layer_paths
from tfcompress.model.transforms import WeightTransform

Selector = str | re.Pattern | type | Callable[[keras.Layer], bool]


def matches(layer: keras.Layer, selector: Selector, path: str = "") -> bool:
    """Whether one selector chooses the layer.

    Args:
        layer: The layer.
        selector: A name (exact, or a regular expression that matches the whole name or path), a
            compiled pattern (searched for in the name or path), a layer class, or a predicate.
        path: The layer's unique path, for layers inside others.
    """
    if isinstance(selector, str):
        return any(lookup.matches(selector, text) for text in (layer.name, path))
    if isinstance(selector, re.Pattern):
        return any(selector.search(text) for text in (layer.name, path))
    if isinstance(selector, type):
        return isinstance(layer, selector)
    if callable(selector):
        return bool(selector(layer))
    raise TypeError(
        "`layers` must hold names, regular expressions, layer classes or predicates. "
        f"Received: {selector!r} of type {type(selector)}"
    )


def as_selectors(layers: Any) -> tuple[Selector, ...] | None:
    """Returns `layers` as a tuple of selectors; `None` stays `None` and means everything."""
    if layers is None:
        return None
    if isinstance(layers, (str, re.Pattern, type)) or callable(layers):
        return (layers,)
    return tuple(layers)


def kernel_indices(model: keras.Model, kernels: Sequence[Kernel]) -> list[int]:
    """The places of kernels among all that may be pruned: the same whatever else is chosen."""
    everything = [id(kernel.variable) for kernel in compressible_kernels(model)]
    return [everything.index(id(kernel.variable)) for kernel in kernels]


def select_kernels(
    model: keras.Model, layers: Any = None, skip_first_last: bool = False
) -> tuple[tuple[Kernel, ...], dict[str, str]]:
    """Chooses kernels, and says of every other layer with weights why it is left out.

    Args:
        model: A built model.
        layers: Selectors (see `matches`); `None` for every kernel in the table.
        skip_first_last: Leave the first and the last kernel of the model out.

    Returns:
        `(kernels, skipped)`, where `skipped` maps a name to its reason.

    Raises:
        ValueError: If nothing is left to act on.
    """
    candidates = compressible_kernels(model)
    labels = kernel_labels(model, candidates)
    selectors = as_selectors(layers)
    ends = {0, len(candidates) - 1} if skip_first_last else set()
    chosen: list[Kernel] = []
    skipped: dict[str, str] = {}
    for index, kernel in enumerate(candidates):
        if selectors is not None and not any(
            matches(kernel.layer, s, labels[index]) for s in selectors
        ):
            skipped[labels[index]] = "not chosen by `layers`"
        elif index in ends:
            skipped[labels[index]] = "first or last (`skip_first_last`)"
        elif not kernel.variable.trainable:
            skipped[labels[index]] = "frozen: not trainable"
        else:
            chosen.append(kernel)
    skipped.update(_unknown_matrices(model))
    for selector in selectors or ():
        found = any(
            matches(k.layer, selector, label) for k, label in zip(candidates, labels, strict=True)
        )
        if isinstance(selector, str) and candidates and not found:
            raise ValueError(
                "Expected every name in `layers` to match a layer with a kernel. "
                f"Received: {selector!r}. {lookup.near_names(selector, labels)}"
            )
    if not chosen:
        raise ValueError(
            "No layer with a kernel was matched. Expected `layers` to choose some of "
            f"{[k.layer.name for k in candidates]}. Received: layers={layers!r}, "
            f"skip_first_last={skip_first_last}. Left out: {skipped}"
        )
    return tuple(chosen), skipped


def kernel_labels(model: keras.Layer, kernels: Sequence[Kernel]) -> list[str]:
    """Returns one unique name per kernel: `layer`, `layer/variable` or `outer/layer/variable`."""
    paths = layer_paths(model)
    return [
        kernel.name.replace(kernel.layer.name, paths.get(id(kernel.layer), kernel.layer.name), 1)
        for kernel in kernels
    ]


def _unknown_matrices(model: keras.Model) -> dict[str, str]:
    """Trainable matrices that belong to no layer of the table; what is smaller cannot be sparse."""
    # A distiller's student is what is pruned; the rest of it is not asked for.
    model = getattr(model, "student", model)
    known = {id(k.variable) for layer in iterate_layers(model) for k in layer_kernels(layer)}
    # What transforms train, such as codebooks, says which values a kernel may have.
    transforms = (o for o in iterate_layers(model) if isinstance(o, WeightTransform))
    known |= {id(variable) for transform in transforms for variable in transform.variables}
    return {
        variable.path: "its layer is not in the table of kernels"
        for variable in model.trainable_variables
        if len(variable.shape) >= 2 and variable.name != "bias" and id(variable) not in known
    }
