"""The plan: which form every layer takes, and why the others stay as they are."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfcompress.factorization.covariance import input_metrics
from tfcompress.factorization.forms import METHODS, Form, Forms, has_kernel, possible, reason
from tfcompress.factorization.ranks import choose_forms
from tfcompress.model.batches import input_batches
from tfcompress.model.compressed import is_compressed
from tfcompress.model.graph import Graph
from tfcompress.model.lookup import check_keys, look_up
from tfcompress.model.macs import count_macs
from tfcompress.model.paths import graph_paths
from tfcompress.model.rewrite import rename_duplicates
from tfcompress.tables import Printable, render_table

# A layer with a smaller share of the model's MACs is not worth decomposing for a budget of MACs.
_WORTH = 0.01


@dataclasses.dataclass(frozen=True)
class FactorizationPlan(Printable):
    """What `factorize` does to every layer. Print it.

    Attributes:
        forms: Layer → the form it takes.
        macs: Layer → multiply-accumulates as it is, of every layer that was looked at.
        left_alone: Layer with a kernel, its own or in a layer inside it → why it stays as it is.
        total_macs: Of the model, before and after; `None` where sizes are unknown.
    """

    forms: Mapping[str, Form]
    macs: Mapping[str, int]
    left_alone: Mapping[str, str]
    total_macs: tuple[int, int] | None

    def __str__(self) -> str:
        rows = [
            (
                name,
                form.method,
                " × ".join(map(str, form.ranks)),
                f"{100 * form.error:.2f} %",
                self.macs[name],
                form.macs,
                form.parameters,
            )
            for name, form in self.forms.items()
        ]
        heads = ("layer", "method", "rank", "error", "MACs before", "after", "weights after")
        text = render_table("Low rank", heads, rows)
        if self.left_alone:
            text += render_table("Left alone", ("layer", "why"), list(self.left_alone.items()))
        if self.total_macs is not None:
            before, after = self.total_macs
            text += f"The model: {before:,} MACs before, {after:,} after.\n"
        return text


#: One rank for all layers, or layer → its rank, two for Tucker-2, `None` for none.
Ranks = int | Mapping[Any, int | tuple[int, int] | None] | None


class Planner:
    """Chooses a form for every layer; the arguments and errors are those of `factorize`.

    Attributes:
        graph: The model's calls; layers of the same name have names of their own here.
        layers: Layer that can be factorized → its forms.
        plan: What is chosen.
    """

    def __init__(
        self,
        model: keras.Model,
        methods: Sequence[str],
        data: Any,
        ranks: Ranks,
        energy: float | None,
        target_macs: int | float | None,
        sensitivity: Mapping[Any, float] | None,
    ):
        _check(methods, ranks, energy, target_macs, sensitivity)
        self.graph = Graph.from_model(model)
        for operation in self.graph.operations():
            if is_compressed(operation):
                raise ValueError(
                    "Expected a model that is not compressed yet: factorize before cluster and "
                    f"quantize. Received: {operation.name!r} of type {type(operation).__name__}. "
                    "tfcompress.strip(model) gives a plain model again."
                )
        self.paths = graph_paths(self.graph, rename_duplicates(self.graph))
        found = [
            op for op in self.graph.operations() if isinstance(op, keras.Layer) and has_kernel(op)
        ]
        self.left_alone = {op.name: why for op in found if (why := reason(op)) is not None}
        chosen = [op for op in found if op.name not in self.left_alone]
        for name, mapping in (("ranks", ranks), ("sensitivity", sensitivity)):
            if isinstance(mapping, Mapping):
                check_keys(mapping, [(op, self.paths[op]) for op in found], name)
        metrics = {}
        if data is not None:
            # The graph may hold renamed copies, so it is they that are run on the data.
            batches = input_batches(data, self.graph.inputs)
            metrics = input_metrics(self.graph.to_model(), chosen, batches)
        self.layers: dict[str, Forms] = {}
        for layer in chosen:
            shapes = [(n.inputs[0].shape, n.output.shape) for n in self.graph.calls(layer)]
            self.layers[layer.name] = Forms(layer, shapes, methods, metrics.get(layer))
        if ranks is not None:
            forms = self._by_ranks(ranks, methods)
        elif energy is not None:
            forms = self._by_energy(energy)
        elif target_macs is not None:
            forms = self._by_budget(model, target_macs, sensitivity or {})
        self.plan = FactorizationPlan(
            forms,
            {name: one.macs for name, one in self.layers.items()},
            self.left_alone,
            self._total(model, forms),
        )

    def _by_ranks(self, ranks: Ranks, methods: Sequence[str]) -> dict[str, Form]:
        forms: dict[str, Form] = {}
        for name, one in self.layers.items():
            rank: Any = ranks
            if isinstance(ranks, Mapping):
                rank = look_up(ranks, one.layer, self.paths[one.layer])
            if rank is None:
                self.left_alone[name] = "no rank is given for it"
                continue
            method = _method_for(one, rank)
            if method is None:
                kinds = ", ".join(possible(one.layer))
                raise ValueError(
                    f"Expected one rank, or two for Tucker-2, that fit {name!r} ({kinds}; methods="
                    f"{tuple(methods)}). Received: {rank!r}."
                )
            rank = rank if isinstance(rank, tuple) else (rank,)
            largest = one.largest(method)
            form = one.form(
                method, tuple(min(int(r), m) for r, m in zip(rank, largest, strict=True))
            )
            self._take(forms, name, [form])
        return forms

    def _by_energy(self, energy: float) -> dict[str, Form]:
        forms: dict[str, Form] = {}
        for name, one in self.layers.items():
            self._take(forms, name, one.with_energy(energy))
        return forms

    def _take(self, forms: dict[str, Form], name: str, options: list[Form]) -> None:
        """The cheapest of the options that pay; else the layer is left alone, with the reason."""
        one = self.layers[name]
        paying = [form for form in options if one.pays(form)]
        if paying:
            forms[name] = min(paying, key=lambda form: form.macs)
        elif not options:
            self.left_alone[name] = "none of the methods fits it"
        else:
            form = min(options, key=lambda form: form.macs)
            ranks = " × ".join(map(str, form.ranks))
            self.left_alone[name] = f"it would grow: {form.method} of rank {ranks}"

    def _by_budget(
        self, model: keras.Model, target_macs: int | float, sensitivity: Mapping[Any, float]
    ) -> dict[str, Form]:
        total = count_macs(model)
        target = int(target_macs)
        if not isinstance(target_macs, numbers.Integral):
            target = int(target_macs * total)
        macs = {name: one.macs for name, one in self.layers.items()}
        others = total - sum(macs.values())
        options = {
            name: one.paying() if macs[name] > _WORTH * total else []
            for name, one in self.layers.items()
        }
        weights = {
            name: look_up(sensitivity, one.layer, self.paths[one.layer], default=1.0)
            for name, one in self.layers.items()
        }
        chosen = choose_forms(options, macs, target - others, weights)
        for name, form in chosen.items():
            if form is not None:
                continue
            if options[name]:
                self.left_alone[name] = "the budget is met without it"
            elif macs[name] <= _WORTH * total:
                self.left_alone[name] = f"it has no more than {_WORTH:.0%} of the MACs"
            else:
                self.left_alone[name] = "no form of it pays"
        return {name: form for name, form in chosen.items() if form is not None}

    def _total(self, model: keras.Model, forms: dict[str, Form]) -> tuple[int, int] | None:
        try:
            before = count_macs(model)
        except ValueError:
            return None
        saved = sum(self.layers[name].macs - form.macs for name, form in forms.items())
        return before, before - saved


def _method_for(forms: Forms, rank: Any) -> str | None:
    """The method for a given rank, or pair of ranks."""
    if isinstance(rank, tuple):
        return "tucker2" if "tucker2" in forms.methods and len(rank) == 2 else None
    return next((m for m in ("spatial", "svd") if m in forms.methods), None)


def _check(
    methods: Sequence[str],
    ranks: Ranks,
    energy: float | None,
    target_macs: int | float | None,
    sensitivity: Mapping[Any, float] | None,
) -> None:
    given = [name for name, v in (("ranks", ranks), ("energy", energy)) if v is not None]
    given += ["target_macs"] if target_macs is not None else []
    if len(given) != 1:
        raise ValueError(
            f"Expected exactly one of ranks, energy and target_macs. Received: {given or 'none'}."
        )
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise ValueError(f"Expected methods among {METHODS}. Received: {methods!r}.")
    each = ranks.values() if isinstance(ranks, Mapping) else [ranks]
    for rank in each:
        parts: tuple[Any, ...] = rank if isinstance(rank, tuple) else (rank,)
        if rank is not None and not all(
            isinstance(r, numbers.Integral) and int(r) > 0 for r in parts
        ):
            raise ValueError(f"Expected ranks to be integers from 1 on. Received: {rank!r}.")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"Expected energy in (0, 1]. Received: {energy=}.")
    if target_macs is not None:
        is_share = not isinstance(target_macs, numbers.Integral)
        if not (0 < target_macs < 1 if is_share else target_macs > 0):
            raise ValueError(
                "Expected target_macs to be a number of MACs, or a share in (0, 1). Received: "
                f"{target_macs!r}."
            )
    if sensitivity is not None:
        if target_macs is None:
            raise ValueError("Expected sensitivity with target_macs. Received: without.")
        bad = {k: v for k, v in sensitivity.items() if not v >= 0}
        if bad:
            raise ValueError(f"Expected sensitivities from 0 on. Received: {bad}.")
