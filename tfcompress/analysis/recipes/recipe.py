"""Recipes: what is done to a model, as a file that can be run again."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.analysis.costs import budgets as budget_types
from tfcompress.analysis.costs.budgets import Budget, as_budgets
from tfcompress.analysis.options.assignment import Assignment
from tfcompress.analysis.options.structured import Structured
from tfcompress.analysis.recipes.checker import Checker
from tfcompress.analysis.recipes.lines import parse_json, parse_yaml
from tfcompress.analysis.recipes.schema import BUDGETS, FIELDS
from tfcompress.analysis.recipes.stages import run_stages
from tfcompress.files.writing import write_atomically
from tfcompress.quantization.quantized_model import QuantizedModel

Stage = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is done to a model: stages, and what they were chosen for.

    A stage is a dict of its kind and its settings. In this order, each once before a `"train"`:

    - `"shrink"`: `channels`, a group of channels (`print(tfc.Dependencies(model))` has the names) →
      the share that it keeps, in multiples as in `sensitivity`; or `target_macs`, and `ranking` as
      in `WidthOptions`;
    - `"factorize"`: `ranks`, `energy` or `target_macs`, and `methods`, as of `factorize`;
    - `"prune"`: `sparsity`, a share of every kernel, or layer → share, at once by size; with
      `end_step` gradually, from `begin_step` on in 20 updates, by the `schedule` `"polynomial"`
      (the default) or `"cosine"`; zeros stay in every later training;
    - `"regularize"`: `l1`, `l2`;
    - `"cluster"`: `num_clusters`;
    - `"quantize"`: `default` and `layers`, names of schemes; null leaves a layer in float;
    - `"distill"`: `temperature` of class scores, `weight` of the teacher, and `labels`, the weight
      of the compiled loss; class scores and probabilities are taught by the KL divergence, values
      by their compiled loss or the squared error, each output with its loss weight;
    - `"train"`: `epochs`, `learning_rate`, `learning_rate_schedule` (`"cosine"`, the default, or
      `"constant"`), `batch_size`, `seed`; `optimizer`, such as `"SGD"` or `{"SGD": {"momentum":
      0.9}}`, by default Adam; `callbacks`, a list such as `["TerminateOnNaN", {"EarlyStopping":
      {"monitor": "loss"}}]`, of Keras, of `tfc.callbacks` or of registered classes.

    Attributes:
        stages: The stages.
        name: For the reader.
        model: Path of the model, for the command line.
        data: Name or path of the data, for the command line.
        metric: Name of the metric.
        max_drop: How much it may lose.
        budgets: What the file may cost.
        calibration_samples: How many of the first training samples give the ranges.

    Raises:
        RecipeError: A `ValueError`: an unknown key, a value out of range, stages in an order that
            cannot work. The message names the key, and of a file the line.

    Example:
        >>> recipe = tfc.Recipe([{"quantize": {"default": "int8"}}, {"train": {"epochs": 2}}])
        >>> tfc.Recipe.from_dict(recipe.to_dict()) == recipe
        True
    """

    stages: Sequence[Stage]
    name: str = ""
    model: str = ""
    data: str = ""
    metric: str = ""
    max_drop: float | None = None
    budgets: Sequence[Budget] = ()
    calibration_samples: int = 256

    def __post_init__(self) -> None:
        for key in ("stages", *(set(FIELDS) - {"version"})):
            object.__setattr__(self, key, _plain(getattr(self, key)))
        object.__setattr__(self, "budgets", as_budgets(self.budgets))  # type: ignore[arg-type]
        Checker().check(self.to_dict())
        object.__setattr__(self, "stages", tuple(self.stages))

    def to_dict(self) -> dict[str, Any]:
        """As plain values; what is empty is left out."""
        values: dict[str, Any] = {"version": 1}
        for key in FIELDS:
            value = getattr(self, key, None)
            if key != "version" and value not in ("", None):
                values[key] = value
        found = [{type(b).__name__: dataclasses.asdict(b)} for b in self.budgets]  # type: ignore[call-overload]
        if found:
            values["budgets"] = [
                {
                    k: {n: v for n, v in s.items() if n in BUDGETS[k] and v is not None}
                    for k, s in b.items()
                }
                for b in found
            ]
        stages = self.stages
        values["stages"] = _plain(list(stages) if isinstance(stages, tuple) else stages)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe of plain values."""
        Checker().check(values)
        return cls._of(values)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Recipe:
        """Reads a recipe in JSON, or in YAML (`.yaml`, `.yml`; needs PyYAML).

        Raises:
            RecipeError: Something is wrong in it; the message names key and line.
            ValueError: Neither JSON nor YAML, or no such file.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise ValueError(f"Expected a recipe. Received: {str(path)!r}, which is no file.")
        is_yaml = path.suffix.lower() in (".yaml", ".yml")
        try:
            parse = parse_yaml if is_yaml else parse_json
            values, lines = parse(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"Expected a recipe in JSON or YAML. Received: {str(path)!r}: {error}"
            ) from error
        Checker(str(path), lines).check(values)
        return cls._of(values)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the recipe: as YAML where the name ends in `.yaml` or `.yml`, else as JSON."""
        values = self.to_dict()
        if pathlib.Path(path).suffix.lower() not in (".yaml", ".yml"):
            write_atomically(path, json.dumps(values, indent=2) + "\n")
            return
        try:
            import yaml
        except ImportError as error:
            raise ValueError(
                "Expected PyYAML to write YAML: pip install tfcompress[yaml]. Received: "
                f"{os.fspath(path)!r}. JSON needs nothing."
            ) from error
        write_atomically(path, yaml.safe_dump(values, sort_keys=False))

    def run(self, model: keras.Model, train: Any, *, verbose: int = 1) -> keras.Model:
        """Follows the stages.

        Args:
            model: A built float model; it is left untouched. It is the teacher of `"distill"`, and
                compiled with the loss and the loss weights of every training.
            train: `(x, y)` as arrays, or batches as for `fit`; several inputs or outputs as lists,
                tuples or dicts. With `"labels"` 0 in every `"distill"` the inputs are enough.
            verbose: As for `fit`.

        Returns:
            The compressed model, to be exported. A quantized one keeps the recipe, also in a
            `.keras` file, and the report of its export holds it.

        Raises:
            ValueError: A layer that the model does not have, data that do not fit, or a training
                that lacks a loss or labels.
        """
        with warnings.catch_warnings():
            # Ranges are those of a model whose training has not begun.
            warnings.filterwarnings("ignore", "The (outputs|ranges) of", UserWarning)
            made = run_stages(self.stages, model, train, self.calibration_samples, verbose)
        if isinstance(made, QuantizedModel):
            made.recipe = self.to_dict()
        return made

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Recipe:
        given = {key: values[key] for key in FIELDS if key in values and key != "version"}
        limits = [
            getattr(budget_types, kind)(**settings)
            for entry in values.get("budgets", [])
            for kind, settings in entry.items()
        ]
        return cls(stages=values["stages"], budgets=limits, **given)


def _plain(value: Any) -> Any:
    """A value as JSON has it: lists for tuples, Python's numbers for those of NumPy, text for keys.

    What JSON does not have stays, and is refused by the check.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def recipe_of(
    assignment: Assignment,
    start: Structured,
    training: Mapping[str, Any],
    distill: bool,
    **fields: Any,
) -> Recipe:
    """The recipe of a candidate of a search.

    Args:
        assignment: What each layer gets.
        start: The float model with its widths and ranks.
        training: Settings of `"train"`.
        distill: Whether the float model teaches.
        **fields: Other fields of the recipe.
    """
    stages: list[dict[str, dict[str, Any]]] = []
    if assignment.channels:
        stages.append({"shrink": {"channels": dict(assignment.channels)}})
    if start.ranks:
        stages.append({"factorize": {"ranks": dict(start.ranks), "methods": ["svd"]}})
    if assignment.sparsity:
        stages.append({"prune": {"sparsity": start.expand(assignment.sparsity)}})
    bits = start.expand(assignment.bits)
    layers = {name: assignment.presets[b] for name, b in bits.items()}
    stages.append({"quantize": {"default": "int8", **({"layers": layers} if layers else {})}})
    if distill:
        stages.append({"distill": {}})
    stages.append({"train": dict(training)})
    return Recipe(stages, **fields)
