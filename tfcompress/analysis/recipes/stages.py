"""Runs the stages of a recipe."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
from keras import tree

from tfcompress.analysis.measuring.files import predict
from tfcompress.analysis.measuring.measures import output_kinds
from tfcompress.analysis.measuring.samples import Samples, read_samples
from tfcompress.analysis.options.assignment import layers_by_path, pruned
from tfcompress.analysis.options.widths import Widths
from tfcompress.analysis.recipes.finetune import finetune, training_batches
from tfcompress.analysis.recipes.loss_check import check_training
from tfcompress.analysis.recipes.named import SCHEDULES, make_callback, make_optimizer
from tfcompress.analysis.recipes.objective import objective_of
from tfcompress.analysis.recipes.zeros import Zeros
from tfcompress.factorization import factorize
from tfcompress.model.batches import check_repeatable
from tfcompress.model.compilation import functional_as_compiled
from tfcompress.model.flat import flat_copy, flat_names
from tfcompress.model.kernels import iterate_layers, layer_kernels
from tfcompress.model.lookup import near_names
from tfcompress.pruning.regularization.callback import Regularization
from tfcompress.pruning.structure import shrink
from tfcompress.pruning.structure.options import WidthOptions
from tfcompress.quantization.config import QuantizationConfig
from tfcompress.quantization.quantize import quantize
from tfcompress.sharing import cluster

# Gradual pruning takes so many updates, with at most so many steps between two of them.
_UPDATES, _MOST_STEPS = 20, 100
# Samples of a batch where a recipe names none, as in `finetune`.
_BATCH = 128


def run_stages(
    stages: Sequence[Mapping[str, Mapping[str, Any]]],
    model: keras.Model,
    train: Any,
    calibration_samples: int,
    verbose: int,
) -> keras.Model:
    """Follows the stages of a recipe; see `Recipe`.

    Args:
        stages: The stages, which were checked.
        model: A built float model.
        train: Training data.
        calibration_samples: How many of the first samples give the ranges.
        verbose: As for `fit`.
    """
    check_repeatable(train, "train")
    teacher = functional_as_compiled(model, train)
    held = read_samples(train, teacher, calibration_samples)
    kinds = [next(iter(stage)) for stage in stages]
    _try_training([stage["train"] for stage in stages if "train" in stage])
    if "train" in kinds and set(kinds[kinds.index("train") :]) != {"train"}:
        # What a later stage refuses is known before the first training.
        _Run(teacher, train, held, 0, is_rehearsal=True).follow(stages)
    work = _Run(teacher, train, held, verbose)
    work.follow(stages)
    return work.model


def _try_training(settings: Sequence[Mapping[str, Any]]) -> None:
    """Makes every optimizer and callback once, so that a wrong setting is an error at once."""
    for train in settings:
        make_optimizer(train.get("optimizer", "Adam"), 1e-3)
        for callback in train.get("callbacks", ()):
            make_callback(callback)


def _matches(pattern: str, path: str) -> bool:
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error:
        return False


class _Run:
    """The model between two stages, and what the next training takes with it.

    Args:
        teacher: The functional float model.
        train: Training data.
        held: The samples that give ranges.
        verbose: As for `fit`.
        is_rehearsal: Whether the trainings are left out.
    """

    def __init__(
        self,
        teacher: keras.Model,
        train: Any,
        held: Samples,
        verbose: int,
        is_rehearsal: bool = False,
    ):
        # A copy: training must change neither the user's model nor the teacher.
        self.model = pruned(flat_copy(teacher), {})
        self.teacher, self.train, self.held = teacher, train, held
        self.verbose, self.is_rehearsal = verbose, is_rehearsal
        self._names = flat_names(teacher)
        reference = tree.flatten(predict(teacher, held))
        self.kinds = output_kinds(teacher, reference)
        self.callbacks: list[keras.callbacks.Callback] = []
        self.zeros = Zeros()
        self.distillation: dict[str, Any] | None = None

    def follow(self, stages: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
        """Follows the stages."""
        for stage in stages:
            ((kind, settings),) = stage.items()
            getattr(self, f"_{kind}")(**settings)

    def _by_flat_name(self, settings: Any) -> Any:
        """Settings by layer, whose keys may be paths in nested models, as `plan` has them."""
        if not isinstance(settings, Mapping):
            return settings
        found: dict[Any, Any] = {}
        for key, value in settings.items():
            names = [self._names[key]] if key in self._names else []
            if not names and "/" in key:
                names = [n for path, n in self._names.items() if _matches(key, path)]
            found |= dict.fromkeys(names or [key], value)
        return found

    def _shrink(
        self,
        channels: Mapping[str, float] | None = None,
        target_macs: float | None = None,
        ranking: Literal["global", "uniform"] = "global",
    ) -> None:
        if channels is None:
            options = WidthOptions(ranking=ranking)
            self.model = shrink(self.model, target_macs=target_macs, widths=options)
            return
        widths = Widths(self.model)
        unknown = sorted(set(channels) - set(widths.names))
        if unknown:
            raise ValueError(
                f"Expected groups of channels of the model. Received: {unknown}; there are "
                f"{widths.names}."
            )
        self.model = widths.build(channels)

    def _factorize(self, ranks: Any = None, **settings: Any) -> None:
        made = factorize(self.model, ranks=self._by_flat_name(ranks), **settings)
        self.zeros.check_factorized(self.model, made)
        self.model = made

    def _prune(
        self,
        sparsity: float | Mapping[str, float],
        begin_step: int = 0,
        end_step: int | None = None,
        schedule: str = "polynomial",
    ) -> None:
        layers = layers_by_path(self.model)
        shares = self._by_flat_name(sparsity)
        if not isinstance(sparsity, Mapping):
            shares = {
                name: sparsity
                for name, layer in layers.items()
                if any(layer_kernels(inner) for inner in iterate_layers(layer))
            }
        assert isinstance(shares, Mapping)
        unknown = sorted(set(shares) - set(layers))
        if unknown:
            raise ValueError(
                f"Expected layers of the model to prune. Received: {unknown}. "
                f"{near_names(unknown[0], [*layers, *self._names])}"
            )
        if end_step is None:
            self.zeros.set(self.model, {name: share for name, share in shares.items() if share})
            return
        groups: dict[float, list[str]] = {}
        for name, share in shares.items():
            if share:
                groups.setdefault(share, []).append(name)
        frequency = max(1, min(_MOST_STEPS, (end_step - begin_step) // _UPDATES))
        for share, names in groups.items():
            ramp = SCHEDULES[schedule](0.0, share, begin_step, end_step, frequency=frequency)
            self.zeros.add_ramp(self.model, names, share, ramp)

    def _regularize(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.callbacks.append(Regularization(l1=l1, l2=l2))

    def _cluster(self, **settings: Any) -> None:
        self.model = cluster(self.model, **settings)

    def _quantize(
        self, default: str | None = "int8", layers: Mapping[str, str | None] | None = None
    ) -> None:
        config = QuantizationConfig(default, by_name=self._by_flat_name(layers or {}))
        try:
            self.model = quantize(self.model, config, calibration_data=self.held.inputs)
        except ValueError as error:
            # The argument by its name in the recipe.
            text = str(error).replace("`by_name`", "'layers' of 'quantize'")
            raise ValueError(text) from error

    def _distill(self, **settings: float) -> None:
        self.distillation = dict(settings)

    def _train(
        self,
        epochs: int = 1,
        optimizer: Any = "Adam",
        callbacks: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        objective = objective_of(self.teacher, self.kinds)
        check_training(self.teacher, objective, self.held, self.distillation)
        if self.zeros.last_step:
            self._check_steps(epochs, settings)
        acting = [*self.callbacks, *self.zeros.callbacks(self.model, int(self.verbose > 0))]
        if not self.is_rehearsal:
            finetune(
                self.model,
                self.teacher,
                self.train,
                kinds=self.kinds,
                epochs=epochs,
                distill=self.distillation is not None,
                distillation=self.distillation,
                optimizer=functools.partial(make_optimizer, optimizer),
                callbacks=[*acting, *map(make_callback, callbacks)],
                verbose=self.verbose,
                **settings,
            )
        self.zeros.end_training(self.model, self.is_rehearsal)
        self.callbacks, self.distillation = [], None

    def _check_steps(self, epochs: int, settings: Mapping[str, Any]) -> None:
        """Refuses gradual pruning that a training ends before."""
        size = settings.get("batch_size", _BATCH)
        steps = training_batches(self.train, self.model, size)[1]
        if steps is not None and self.zeros.last_step > epochs * steps:
            raise ValueError(
                f"Expected the 'end_step' of pruning within the training of {epochs * steps} "
                f"steps. Received: {self.zeros.last_step}."
            )
