"""`Pruner`: holds masks on a model's kernels and updates them; `Pruning` calls it during `fit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.finite import NotFinite, check_finite, warn_not_finite
from tfcompress.model.keras_features import check_float_kernels
from tfcompress.pruning.criteria.evidence import Evidence
from tfcompress.pruning.criteria.options import DEFAULT_SCORING, ScoringOptions
from tfcompress.pruning.criteria.registry import Criterion, get_weight_criterion
from tfcompress.pruning.criteria.statistics import Statistics
from tfcompress.pruning.masks import constraints
from tfcompress.pruning.masks.patterns import Pattern, get_pattern
from tfcompress.pruning.masks.ranking import global_masks, layer_masks
from tfcompress.pruning.methods.gradual import get_method
from tfcompress.pruning.methods.method import Method
from tfcompress.pruning.report import PruningReport
from tfcompress.pruning.selection import (
    check_pattern,
    kernel_indices,
    kernel_labels,
    select_kernels,
)
from tfcompress.pruning.state import PruningState, attach_state, settings_key, state_key


class Pruner:
    """Prunes a model while a custom training loop trains it.

    ```python
    with tfc.Pruner(model, tfc.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1000)) as pruner:
        pruner.update(0)
        for step, batch in enumerate(data, start=1):
            train_step(batch)      # traced after the pruner was made: it holds the zeros
            pruner.update(step, batch=batch)
    ```

    While the pruner is attached, a constraint on each kernel's variable keeps removed weights at
    exactly zero after every step of a Keras optimizer; a loop without one gets them back to zero
    at each `update`. A new run starts from the zeros it finds, and they stay.

    Args:
        model: A built model. A method `compressible_kernels()` of it (a distiller has one) decides
            what may be pruned.
        schedule: A schedule (`PolynomialDecay`, ...), a dynamic method (`MetricGuided`, `RigL`,
            `SET`, `DynamicNetworkSurgery`), a schedule of tfmot, or a callable
            `step -> (should_prune, sparsity)`.
        criterion: Name or function that scores weights; see `tfcompress.pruning.criteria.registry`.
        pattern: `"unstructured"`, `"channels"`, `Block(h, w)` or `NOfM(n, m)`.
        scope: `"layer"`: every kernel gets the same sparsity. `"global"`: one ranking over all
            kernels.
        layers: Which layers: names, regular expressions, classes, names of classes, predicates, or
            a list of them. By default every kernel that is known.
        skip_first_last: Leave the first and the last kernel dense.
        data: Batches for criteria that need gradients or activations: a tuple of arrays
            `(x, y)`, a `tf.data.Dataset`, or an iterable of such tuples.
        seed: Seed of whatever is random.
        preserve_zeros: Whether zeros found at the start stay. A kernel that is nothing but zeros
            counts as freshly initialized, and is pruned from scratch.
        scoring: How a criterion reads `data`: number and size of batches, loss.

    Raises:
        ValueError: If no layer is matched, a pattern does not fit a kernel, data is missing, or
            Keras has quantized a layer or extended its kernel (LoRA).
    """

    def __init__(
        self,
        model: keras.Model,
        schedule: Any,
        *,
        criterion: str | Callable[..., Any] | Criterion = "magnitude",
        pattern: str | Pattern = "unstructured",
        scope: Literal["layer", "global"] = "layer",
        layers: Any = None,
        skip_first_last: bool = False,
        data: Any = None,
        seed: int = 0,
        preserve_zeros: bool = True,
        scoring: ScoringOptions = DEFAULT_SCORING,
    ):
        check_float_kernels(model)
        self.model = model
        self.method: Method = get_method(schedule)
        self.criterion = get_weight_criterion(criterion)
        self.pattern = get_pattern(pattern)
        self.scope: Literal["layer", "global"] = scope
        self.seed = seed
        self.preserve_zeros = preserve_zeros
        self.kernels, self.skipped = select_kernels(model, layers, skip_first_last)
        self.names = kernel_labels(model, self.kernels)
        self.evidence = Evidence(
            self.criterion,
            Statistics(model, self.kernels, scoring.loss),
            self.names,
            [(seed, index) for index in kernel_indices(model, self.kernels)],
            data=data,
            options=scoring,
        )
        check_pattern(self.pattern, scope, self.names, self.kernels)
        self.method.check(self)
        self._settings = settings_key(
            self.method, self.criterion.name, self.pattern, scope, preserve_zeros
        )
        self.last_update: int | None = None
        self.found: list[np.ndarray] = []
        self.begun = False
        self._warned: set[str] = set()
        self._attach()

    # ---- what a training loop calls -------------------------------------------------------------

    def update(
        self, step: int, *, metrics: dict[str, Any] | None = None, batch: Any = None
    ) -> bool:
        """Updates the masks to those of `step`, and applies them.

        Args:
            step: Number of optimizer steps taken so far.
            metrics: The metrics of an epoch that has just ended, for `MetricGuided`.
            batch: `(x, y)` or `(x, y, sample_weight)`, for criteria that need gradients or
                activations; takes the place of `data`.

        Returns:
            Whether masks were computed anew.

        Warns:
            UserWarning: Weights, or gradients or activations of a batch, are NaN or infinite; the
                layers are named. The masks stay as they were until they are finite again.
        """
        step = int(step)
        self._step = step
        if not self.begun:
            self.begin(step)
        changed = False
        if metrics is not None and self.method.needs_metrics:
            try:
                changed = self.method.on_metrics(self, step, metrics, batch)
            except NotFinite as error:
                self._warn(step, error)
        if self.method.due(self.last_update, step):
            try:
                self._check_kernels()
                self.method.update(self, step, batch)
                self.last_update = step
                changed = True
            except NotFinite as error:
                self._warn(step, error)
        if not changed:
            self.apply_masks()
        return changed

    def is_due(self, step: int) -> bool:
        """Whether `update(step)` would compute new masks."""
        return not self.begun or self.method.due(self.last_update, int(step))

    def begin(self, step: int, restore_from: str | None = None) -> None:
        """Continues an interrupted run, or starts from the zeros in the kernels.

        Called by the first `update`. The order of preference is: what Keras has loaded into the
        model since the pruner was attached (`BackupAndRestore`), `restore_from`, the state of an
        earlier run with the same settings on this model that ended at this very step, the zeros.

        Raises:
            ValueError: If a file holds the state of another run, or the data cannot give what the
                criterion or method needs.
        """
        self.begun = True
        self.evidence.try_out(step, self.method.needs_data)
        kernels = [kernel.variable.numpy() for kernel in self.kernels]
        arrays = self.state.continued(step, self._settings, kernels, restore_from)
        if arrays is not None:
            self.state.restore(arrays)
            last = int(arrays["last_update"])
            self.last_update = last if last >= 0 else None
            self.found = [self.state.values[f"found_{i}"] for i in range(len(self.kernels))]
            self.apply_masks()
            return
        if self.method.regrows and step > self.method.begin_step:
            raise ValueError(
                f"The optimizer has taken {step} steps, and {type(self.method).__name__} would "
                f"have begun at step {self.method.begin_step}, but no state of it was found. To "
                "continue a run pass `restore_from=` the .keras or .weights.h5 file that was saved "
                "during it; to begin one now set `begin_step` to the current step or later."
            )
        self.found = [self._zeros_found(k.variable.numpy()) for k in self.kernels]
        self.state.values.update({f"found_{i}": found for i, found in enumerate(self.found)})
        self.state.values["settings"] = self._settings
        self.method.start(self, step)
        self.set_masks(self.found)

    def apply_masks(self) -> None:
        """Sets every removed weight to zero."""
        self._apply()

    def finish(self) -> None:
        """Applies the masks a last time and takes the constraints off."""
        if self.begun:
            self.method.finish(self, self._step)
            self.apply_masks()
        self.detach()

    def detach(self) -> None:
        """Takes the constraints off; the kernels may change freely from here on."""
        for kernel, constraint in zip(self.kernels, self.constraints, strict=True):
            constraints.detach(kernel.variable, constraint)
        final = self._live()
        self.state.live = lambda: final
        self._drop_traces()

    def __enter__(self) -> Pruner:
        return self

    def __exit__(self, kind: Any, *exception: Any) -> None:
        # After an exception the masks are not final.
        if kind is None:
            self.finish()
        else:
            self.detach()

    # ---- reports --------------------------------------------------------------------------------

    def sparsity(self) -> dict[str, float]:
        """Fraction of weights outside the mask, per kernel."""
        return {
            name: 1.0 - float(np.mean(mask.numpy()))
            for name, mask in zip(self.names, self.masks, strict=True)
        }

    def overall_sparsity(self) -> float:
        """Fraction of weights outside the masks, over all kernels that are pruned."""
        kept = sum(int(np.sum(mask.numpy())) for mask in self.masks)
        return 1.0 - kept / sum(int(np.prod(mask.shape)) for mask in self.masks)

    def report(self) -> PruningReport:
        """The sparsity of each kernel, and what is not pruned, with the reason."""
        sizes = [int(np.prod(mask.shape)) for mask in self.masks]
        return PruningReport(
            dict(zip(self.names, sizes, strict=True)), self.sparsity(), dict(self.skipped)
        )

    def clock(self) -> int:
        """The current step: the optimizer's where there is one."""
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None and optimizer.built:
            return int(optimizer.iterations.numpy())
        return self._step

    # ---- what methods use -----------------------------------------------------------------------

    def scores(self, step: int, batch: Any = None) -> list[np.ndarray]:
        """The criterion's scores, one array per kernel."""
        return self.evidence.scores(step, batch)

    def gradients(self, step: int, batch: Any = None) -> list[np.ndarray]:
        """The gradient of each kernel, averaged over the batches of an update."""
        return self.evidence.gradients(step, batch)

    def rank(
        self, scores: Sequence[np.ndarray], sparsity: float, current: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Turns scores into masks by the pattern and the scope; see `ranking`."""
        rank = global_masks if self.scope == "global" else layer_masks
        return rank(scores, [k.spec for k in self.kernels], self.pattern, sparsity, current)

    def prune_to(self, sparsity: float, step: int, batch: Any = None) -> None:
        """Removes the least of what is left, up to this sparsity."""
        current = [mask.numpy() for mask in self.masks]
        if sparsity == 0 and all(mask.all() for mask in current):
            return
        self.set_masks(self.rank(self.scores(step, batch), sparsity, current))

    def set_masks(self, new: Sequence[np.ndarray]) -> None:
        """Sets the masks (without the zeros that were there at the start), and applies them."""
        for mask, value, found in zip(self.masks, new, self.found, strict=True):
            mask.assign(value & found)
        self._apply_latent()

    def create_variable(self, name: str, value: np.ndarray) -> keras.Variable:
        """Creates a variable that is saved with the model under `name`."""
        return self.state.create_variable(self.model, name, value)

    # ---- inside ---------------------------------------------------------------------------------

    def _check_kernels(self) -> None:
        kernels = [kernel.variable.numpy() for kernel in self.kernels]
        check_finite(kernels, self.names, "weights")

    def _warn(self, step: int, error: NotFinite) -> None:
        """Names a step whose numbers are not finite; once for each cause."""
        if str(error) not in self._warned:
            self._warned.add(str(error))
            warn_not_finite(step, error, "Masks")

    def _attach(self) -> None:
        shapes = [k.variable.shape for k in self.kernels]
        indices = kernel_indices(self.model, self.kernels)
        self.state = PruningState(state_key(type(self.method).__name__, indices, shapes))
        self._step = 0
        self.masks = [
            self.create_variable(f"mask_{i}", np.ones(shape, bool))
            for i, shape in enumerate(shapes)
        ]
        self.constraints = self.method.create(self)
        for kernel, constraint in zip(self.kernels, self.constraints, strict=True):
            for kind in (constraints.MaskConstraint, constraints.LatentConstraint):
                constraints.detach_all(kernel.variable, kind)
            constraints.attach(kernel.variable, constraint)
        self.state.live = self._live
        attach_state(self.model, self.state)
        self._drop_traces()
        self._apply = tf.function(lambda: self._assign_masked(latent=False))
        self._apply_latent = tf.function(lambda: self._assign_masked(latent=True))

    def _drop_traces(self) -> None:
        # A train step that is traced already has the constraints of that time.
        if getattr(self.model, "train_function", None) is not None:
            self.model.train_function = None

    def _live(self) -> dict[str, int]:
        last = -1 if self.last_update is None else self.last_update
        return {"step": self.clock(), "last_update": last}

    def _assign_masked(self, latent: bool) -> None:
        for kernel, constraint in zip(self.kernels, self.constraints, strict=True):
            source = getattr(constraint, "latent", None) if latent else None
            value = tf.convert_to_tensor(kernel.variable if source is None else source)
            kernel.variable.assign(constraint.masked(value))

    def _zeros_found(self, kernel: np.ndarray) -> np.ndarray:
        nonzero = kernel != 0
        keep = self.preserve_zeros and self.method.keeps_zeros
        if not keep or not nonzero.any():
            return np.ones(kernel.shape, bool)
        return nonzero
