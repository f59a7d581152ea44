"""Which kernels pruning and regularization act on: by name, regular expression, type, predicate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from tfcompress.model.compressed import Compressed
from tfcompress.model.kernels import Kernel, compressible_kernels, iterate_layers, layer_kernels
from tfcompress.model.lookup import check_keys, find_key
from tfcompress.model.paths import full_paths, layer_paths
from tfcompress.model.transforms import WeightTransform
from tfcompress.pruning.masks.patterns import Pattern

Selector = str | re.Pattern | type | Callable[[keras.Layer], bool]


class Selection:
    """The argument `layers=`: which layers are chosen.

    Args:
        layers: Names, regular expressions, layer classes or names of classes, looked up as in
            `tfcompress.model.lookup`; or predicates of a layer; or a list of these. `None` chooses
            every layer.
    """

    def __init__(self, layers: Selector | Iterable[Selector] | None = None):
        self.chooses_all = layers is None
        if layers is None:
            layers = ()
        elif isinstance(layers, (str, re.Pattern, type)) or callable(layers):
            layers = (layers,)
        self.keys: list[Any] = []
        self.predicates: list[Callable[[Any], bool]] = []
        for selector in layers:
            if isinstance(selector, (str, re.Pattern, type)) or not callable(selector):
                self.keys.append(selector)
            else:
                self.predicates.append(selector)

    def check(self, candidates: Iterable[tuple[Any, ...]]) -> None:
        """Refuses keys that choose none of `(layer, *paths)`; see `lookup.check_keys`."""
        check_keys(self.keys, candidates, "layers")

    def __contains__(self, candidate: tuple[Any, ...]) -> bool:
        """Whether `(layer, *paths)` is chosen."""
        layer, *paths = candidate
        if self.chooses_all or find_key(self.keys, layer, *paths) is not None:
            return True
        return any(predicate(layer) for predicate in self.predicates)


def kernel_indices(model: keras.Model, kernels: Sequence[Kernel]) -> list[int]:
    """The positions of kernels among all that may be pruned, the same whatever else is chosen."""
    everything = [id(kernel.variable) for kernel in compressible_kernels(model)]
    return [everything.index(id(kernel.variable)) for kernel in kernels]


def select_kernels(
    model: keras.Model, layers: Any = None, skip_first_last: bool = False
) -> tuple[tuple[Kernel, ...], dict[str, str]]:
    """Chooses kernels, and gives the reason for every other one that it leaves out.

    Args:
        model: A built model.
        layers: See `Selection`.
        skip_first_last: Leave the first and the last kernel of the model out.

    Returns:
        `(kernels, skipped)`, where `skipped` maps a name to its reason.

    Raises:
        TypeError: A selector of another type.
        ValueError: A key that matches no layer, or if nothing is left to act on.
    """
    selection = layers if isinstance(layers, Selection) else Selection(layers)
    kernels = compressible_kernels(model)
    labels = kernel_labels(model, kernels)
    candidates = selectable_kernels(model)
    if candidates and not isinstance(layers, Selection):
        selection.check(candidates)
    ends = {0, len(kernels) - 1} if skip_first_last else set()
    chosen: list[Kernel] = []
    skipped: dict[str, str] = {}
    for index, (kernel, label) in enumerate(zip(kernels, labels, strict=True)):
        if candidates[index] not in selection:
            skipped[label] = "not chosen by `layers`"
        elif index in ends:
            skipped[label] = "first or last (`skip_first_last`)"
        elif not kernel.variable.trainable:
            skipped[label] = "frozen: not trainable"
        elif not _keeps_zero(kernel):
            skipped[label] = "its weight quantizer has no level 0"
        else:
            chosen.append(kernel)
    skipped.update(_unknown_matrices(model))
    if not chosen:
        raise ValueError(
            "No layer with a kernel was matched. Expected `layers` to choose some of "
            f"{[k.layer.name for k in kernels]}. Received: layers={layers!r}, "
            f"skip_first_last={skip_first_last}. Left out: {skipped}"
        )
    return tuple(chosen), skipped


def _keeps_zero(kernel: Kernel) -> bool:
    """Whether a weight that is set to 0 is 0 in what the layer computes with."""
    layer = kernel.layer
    chain = layer.transforms.get(kernel.spec.name, ()) if isinstance(layer, Compressed) else ()
    return all(transform.keeps_zero for transform in chain)


def selectable_kernels(model: keras.Model) -> list[tuple[Any, ...]]:
    """`(layer, *paths)` of every kernel, in the order of `compressible_kernels`."""
    kernels = compressible_kernels(model)
    # The layers of a distiller's student are called as in the student.
    paths = full_paths(getattr(model, "student", model))
    return [
        (kernel.layer, label, paths.get(id(kernel.layer), kernel.layer.name))
        for kernel, label in zip(kernels, kernel_labels(model, kernels), strict=True)
    ]


def kernel_labels(model: keras.Layer, kernels: Sequence[Kernel]) -> list[str]:
    """Returns one unique name per kernel: `layer`, `layer/variable` or `outer/layer/variable`."""
    paths = layer_paths(model)
    return [
        kernel.name.replace(kernel.layer.name, paths.get(id(kernel.layer), kernel.layer.name), 1)
        for kernel in kernels
    ]


def _unknown_matrices(model: keras.Model) -> dict[str, str]:
    """Trainable matrices of layers that the table of kernels does not know, with the reason."""
    # Of a distiller only the student is pruned.
    model = getattr(model, "student", model)
    known = {id(k.variable) for layer in iterate_layers(model) for k in layer_kernels(layer)}
    # Variables of transforms, such as codebooks, are no kernels of a layer.
    transforms = (o for o in iterate_layers(model) if isinstance(o, WeightTransform))
    known |= {id(variable) for transform in transforms for variable in transform.variables}
    return {
        variable.path: "its layer is not in the table of kernels"
        for variable in model.trainable_variables
        if len(variable.shape) >= 2 and variable.name != "bias" and id(variable) not in known
    }


def check_pattern(
    pattern: Pattern, scope: str, names: Sequence[str], kernels: Sequence[Kernel]
) -> None:
    """Raises `ValueError` where the pattern fits not every kernel, or not the scope."""
    if scope not in ("layer", "global"):
        raise ValueError(f"`scope` must be 'layer' or 'global'. Received: scope={scope!r}")
    if scope == "global" and pattern.sparsity is not None:
        raise ValueError(
            f"{pattern!r} fixes the sparsity of every kernel, so there is nothing to rank "
            "globally. Received: scope='global'; use scope='layer'."
        )
    misfits = {
        name: reason
        for name, k in zip(names, kernels, strict=True)
        if (reason := pattern.fit(tuple(k.variable.shape), k.spec))
    }
    if misfits:
        raise ValueError(
            f"{pattern!r} does not fit these kernels: {misfits}. Choose the layers that "
            "it fits with `layers=`, or another pattern."
        )
