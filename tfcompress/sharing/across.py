"""`share_weights`: one layer in place of similar ones, within a model or across models."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.model.compressed import is_compressed
from tfcompress.model.graph import Graph
from tfcompress.model.kernels import iterate_layers
from tfcompress.model.lookup import check_keys, find_key
from tfcompress.model.paths import graph_paths
from tfcompress.model.rewrite import fresh, rebuild, rename_duplicates
from tfcompress.sharing.similarity import Candidate, distance_of, find_candidates, group_similar
from tfcompress.tables import Printable, render_table

_VALUES = ("mean", "first")


@dataclasses.dataclass(frozen=True)
class SharedGroup:
    """Layers that have become one.

    Attributes:
        layer: Name of the shared layer.
        members: `(index of the model, name of the layer)` of each.
        distance: The largest relative distance between two of them, biases counted.
        weights: Number of weights that are stored once.
    """

    layer: str
    members: tuple[tuple[int, str], ...]
    distance: float
    weights: int


@dataclasses.dataclass(frozen=True)
class SharedModels(Printable):
    """Models that share layers. Print it for a table of what is shared.

    Attributes:
        models: The models, in the order given; uncompiled.
        joint: All of them as one model, with the inputs and outputs of the first, then those of
            the second, and so on, named `"<model>_<input or output>"`: compile and fit it to
            finetune them together.
        groups: What is shared.
        left_alone: `(index of the model, layer)` with kernels → why it is not.
    """

    models: tuple[keras.Model, ...]
    joint: keras.Model
    groups: tuple[SharedGroup, ...]
    left_alone: dict[tuple[int, str], str]

    @property
    def num_weights(self) -> tuple[int, int]:
        """`(all models' weights added up, weights that are stored)`."""
        summed = sum(model.count_params() for model in self.models)
        # A layer that one model calls twice counts once in that model already.
        unique = {id(v): v for model in self.models for v in model.weights}
        return summed, sum(int(np.prod(v.shape)) for v in unique.values())

    def __str__(self) -> str:
        rows = [
            (
                group.layer,
                ", ".join(f"{i}: {name}" for i, name in group.members),
                f"{group.distance:.3f}",
                group.weights,
            )
            for group in self.groups
        ]
        heads = ("shared layer", "model: layer", "distance", "weights")
        text = render_table("Shared layers", heads, rows)
        if self.left_alone:
            alone = [(f"{i}: {name}", why) for (i, name), why in self.left_alone.items()]
            text += render_table("Left alone", ("model: layer", "why"), alone)
        summed, stored = self.num_weights
        return text + f"{stored:,} weights are stored, {summed:,} models' weights added up.\n"


def share_weights(
    models: Sequence[keras.Model],
    *,
    tolerance: float,
    keep_apart: Sequence[str | type] = (),
    within: bool | None = None,
    value: str = "mean",
) -> SharedModels:
    """Finds layers of equal kind and shape whose weights are similar, and makes them one layer.

    Two layers are similar where ‖A − B‖ / √(‖A‖·‖B‖) ≤ tolerance for each of their kernels, and for
    all of their weights, the bias with them, taken as one vector; all pairs of a group are. That is
    0 for equal layers and about √2 for unrelated ones, so with a tolerance of 1.5 and more nearly
    every layer of equal shape is shared, those at the same depth first; name what must not be, such
    as heads, in `keep_apart`. Batch norms stay separate, and with them each model's own scale per
    channel. A shared layer is trainable where one of its members is. Finetune the `joint` model
    afterwards: layers that were not equal have changed.

    A dict of the models, quantized each on its own, goes into one `.tflite` by `export_tflite`,
    which stores equal codes once.

    Args:
        models: Built Sequential or Functional models that are not compressed; left untouched.
        tolerance: From 0 on.
        keep_apart: Names, regular expressions, classes or names of classes of layers that are not
            shared.
        within: Whether layers of the same model may be shared; by default only where there is just
            one model.
        value: `"mean"` of the kernels (and biases) of a group, or those of its `"first"` layer.

    Raises:
        TypeError: Not a Keras model.
        ValueError: An empty list, a model given twice, a subclassed or compressed model, an
            argument out of range, or a key of `keep_apart` that matches no layer.
    """
    models = list(models)
    _check(models, tolerance, value)
    within = len(models) == 1 if within is None else within
    graphs = [Graph.from_model(model) for model in models]
    paths = [graph_paths(graph, rename_duplicates(graph)) for graph in graphs]
    found = list(find_candidates(graphs, paths))
    keys = [keep_apart] if isinstance(keep_apart, (str, type, re.Pattern)) else list(keep_apart)
    check_keys(keys, ((c.layer, c.path) for c in found), "keep_apart")
    apart = {id(c) for c in found if find_key(keys, c.layer, c.path) is not None}
    groups = group_similar([c for c in found if id(c) not in apart], tolerance, within)
    taken = [{op.name for op in graph.operations()} for graph in graphs]
    replacements: list[dict[Any, Any]] = [{} for _ in models]
    made, shared = [], []
    used: set[str] = set()
    for members in groups:
        name = _name(members, taken, used)
        used.add(name)
        layer = fresh(members[0].layer)
        layer = type(layer).from_config({**layer.get_config(), "name": name})
        values = _values(members, value)
        made.append((layer, values, any(member.layer.trainable for member in members)))
        for member in members:
            replacements[member.model][member.layer] = layer
        distance = max(distance_of(a, b) for a, b in itertools.combinations(members, 2))
        names = tuple((member.model, member.layer.name) for member in members)
        shared.append(SharedGroup(name, names, distance, sum(v.size for v in values)))
    grouped = {(m.model, m.layer.name) for members in groups for m in members}
    alone = _left_alone(graphs, found, apart, grouped)
    _rename_models(graphs)
    results = tuple(
        rebuild(graph, replaced) for graph, replaced in zip(graphs, replacements, strict=True)
    )
    for layer, values, trainable in made:
        layer.trainable = trainable
        for variable, array in zip(layer.weights, values, strict=True):
            variable.assign(array)
    return SharedModels(results, _joint(results), tuple(shared), alone)


def _values(members: list[Candidate], value: str) -> list[np.ndarray]:
    every = [[v.numpy() for v in member.layer.weights] for member in members]
    return every[0] if value == "first" else [np.mean(same, 0) for same in zip(*every, strict=True)]


def _name(members: list[Candidate], taken: list[set[str]], used: set[str]) -> str:
    """The first layer's name, where no other layer of the models concerned has it."""
    stem = name = members[0].layer.name
    count = 0
    while name in used or any(
        name in taken[index] and name not in {m.layer.name for m in members if m.model == index}
        for index in {m.model for m in members}
    ):
        count += 1
        name = f"{stem}_shared_{count}"
    return name


def _rename_models(graphs: Sequence[Graph]) -> None:
    seen: collections.Counter[str] = collections.Counter()
    names = {graph.name for graph in graphs}
    for graph in graphs:
        stem, name = graph.name, graph.name
        seen[stem] += 1
        if seen[stem] > 1:
            while name in names:
                name = f"{stem}_{seen[stem]}"
                seen[stem] += name in names
            names.add(name)
            graph.name = name


def _joint(models: Sequence[keras.Model]) -> keras.Model:
    inputs, outputs = [], []
    names: list[str] = []
    for model in models:
        own = [
            keras.Input(batch_shape=t.shape, dtype=t.dtype, name=f"{model.name}_{t.name}")
            for t in model.inputs
        ]
        inputs.extend(own)
        structure = keras.tree.pack_sequence_as(model.input, own)
        outputs.extend(keras.tree.flatten(model(structure)))
        names.extend(f"{model.name}_{name}" for name in model.output_names)
    joint = keras.Model(inputs, outputs, name="joint")
    # Keras names all outputs of a model after the model.
    joint.output_names = names
    return joint


def _left_alone(
    graphs: Sequence[Graph],
    found: Sequence[Candidate],
    apart: set[int],
    grouped: set[tuple[int, str]],
) -> dict[tuple[int, str], str]:
    known = {(candidate.model, candidate.layer.name): id(candidate) for candidate in found}
    reasons = {}
    for index, graph in enumerate(graphs):
        names = {op.name: op for op in graph.operations() if isinstance(op, keras.Layer)}
        for name, layer in names.items():
            if (index, name) in grouped:
                continue
            if known.get((index, name)) in apart:
                reasons[index, name] = "kept apart, as asked"
            elif (index, name) in known:
                reasons[index, name] = "no layer of its kind and shape is near enough"
            elif any(len(v.shape) > 1 for v in layer.weights):
                reasons[index, name] = f"{type(layer).__name__} is not in the table of kernels"
    return reasons


def _check(models: list, tolerance: Any, value: str) -> None:
    if not models:
        raise ValueError("Expected at least one model. Received: an empty list.")
    if len({id(model) for model in models}) < len(models):
        raise ValueError("Expected different models. Received: the same one twice.")
    if not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise ValueError(f"Expected tolerance from 0 on. Received: {tolerance=}.")
    if value not in _VALUES:
        raise ValueError(f"Expected value to be one of {_VALUES}. Received: {value=}.")
    for model in models:
        if isinstance(model, keras.Model):
            compressed = [v.name for v in iterate_layers(model) if is_compressed(v)]
            if compressed:
                raise ValueError(
                    "Expected models that are not compressed yet: share before cluster and "
                    f"quantize. Received: {model.name!r} with {compressed}."
                )
