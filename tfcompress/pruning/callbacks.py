"""The callback for pruning during `model.fit`; it calls `Pruner`."""

from __future__ import annotations

import importlib.util
from typing import Any

import keras
import tensorflow as tf

from tfcompress.model.finite import LossWatch
from tfcompress.model.kernels import compressible_kernels, iterate_layers
from tfcompress.model.replicas import check_replicas
from tfcompress.pruning.criteria.options import DEFAULT_SCORING, ScoringOptions
from tfcompress.pruning.criteria.registry import get_weight_criterion
from tfcompress.pruning.masks import constraints
from tfcompress.pruning.masks.patterns import get_pattern
from tfcompress.pruning.methods.gradual import get_method
from tfcompress.pruning.pruner import Pruner
from tfcompress.pruning.report import PruningReport


class Pruning(keras.callbacks.Callback):
    """Makes the kernels of any model sparse during an ordinary `model.fit`.

    ```python
    model.fit(x, y, callbacks=[
        tfc.callbacks.Pruning(tfc.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=5000)),
    ])
    ```

    The step is `optimizer.iterations`. Masks are held by constraints on the kernels' variables,
    which Keras applies in the training step; they are taken off when training ends, so that a
    later `fit` without this callback is free to change every weight.

    The state that a continued run needs is saved with the model's weights: `BackupAndRestore`
    restores it (put this callback before it); for a file give `restore_from`. The sparsity goes to
    the epoch's logs as `"sparsity"`.

    Callbacks that put other weights into the model go before this one, so that it masks them:
    `SwapEMAWeights`, and `EarlyStopping(restore_best_weights=True)`. With the latter let
    `start_from_epoch` be past `end_step`; otherwise it may restore weights of a denser model that
    were never trained with the final masks. `MetricGuided` does what both are meant to do together.

    Args:
        schedule: A schedule, a dynamic method, a schedule of tfmot or a callable; see `Pruner`.
        criterion: Name or function that scores weights.
        pattern: `"unstructured"`, `"channels"`, `Block(h, w)` or `NOfM(n, m)`.
        scope: `"layer"` or `"global"`.
        layers: Names, regular expressions, classes, names of classes, predicates, or a list of
            them.
        skip_first_last: Leave the first and the last kernel dense.
        data: Batches for criteria that need gradients or activations.
        restore_from: A `.keras` or `.weights.h5` file, saved while this callback was training the
            model; the first `fit` continues from its masks and state.
        log_dir: Folder for TensorBoard summaries of the sparsity per kernel and overall.
        verbose: 0 is silent; 1 prints what is left out, and a line after each epoch.
        seed: Seed of whatever is random.
        preserve_zeros: Whether zeros found at the start stay; see `Pruner`.
        scoring: How a criterion reads `data`: number and size of batches, loss.

    Attributes:
        pruner: The `Pruner` of the current or the last `fit`.

    Raises:
        ValueError: If data is missing; and before training starts, if no layer is matched or a
            pattern does not fit a kernel.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
        >>> model.compile("sgd", "mse")
        >>> pruning = tfc.callbacks.Pruning(tfc.ConstantSparsity(0.75, frequency=1), verbose=0)
        >>> x = np.ones((16, 8), "float32")
        >>> history = model.fit(x, x, verbose=0, callbacks=[pruning])
        >>> int(np.count_nonzero(model.layers[-1].kernel))    # of 64 weights
        16
    """

    def __init__(
        self,
        schedule: Any,
        *,
        criterion: Any = "magnitude",
        pattern: Any = "unstructured",
        scope: str = "layer",
        layers: Any = None,
        skip_first_last: bool = False,
        data: Any = None,
        restore_from: str | None = None,
        log_dir: str | None = None,
        verbose: int = 1,
        seed: int = 0,
        preserve_zeros: bool = True,
        scoring: ScoringOptions = DEFAULT_SCORING,
    ):
        super().__init__()
        self.method = get_method(schedule)
        self.options = {
            "criterion": get_weight_criterion(criterion),
            "pattern": get_pattern(pattern),
            "scope": scope,
            "layers": layers,
            "skip_first_last": skip_first_last,
            "data": data,
            "seed": seed,
            "preserve_zeros": preserve_zeros,
            "scoring": scoring,
        }
        if data is None and (self.method.needs_data or self.options["criterion"].needs_data):
            needing = schedule if self.method.needs_data else repr(criterion)
            raise ValueError(
                f"{needing} needs gradients or activations, so `data` must be batches to compute "
                "them from: a tuple of arrays (x, y) or a tf.data.Dataset. Received: data=None"
            )
        if log_dir is not None and importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "`log_dir` writes TensorBoard summaries, which need the package tensorboard: "
                f"`pip install tfcompress[reports]`. Received: log_dir={log_dir!r}"
            )
        self.restore_from = restore_from
        self._restored = False
        self.log_dir = log_dir
        self.verbose = verbose
        self.pruner: Pruner | None = None
        self._writer = None
        self._watch = LossWatch("Masks")

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        check_replicas(model)
        self.pruner = None
        self._checked = False
        # A model that builds itself in its first step has no kernels yet; `built` may be set.
        whole = model.built and all(layer.built for layer in iterate_layers(model))
        if whole or (model.built and compressible_kernels(model)):
            self._make_pruner()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.pruner is None or self.pruner.begun:
            return
        # Not earlier: in between, `BackupAndRestore` loads weights and steps.
        self._check_constraints()
        step = self.pruner.clock()
        # Once: a later `fit` continues from the model itself.
        self.pruner.begin(step, None if self._restored else self.restore_from)
        self._restored = True
        self.pruner.update(step)
        if self.log_dir is not None and self._writer is None:
            self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._watch.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._watch.end_batch(self.model, batch, logs)
        if self.pruner is None:
            self._make_pruner()
            self.model.make_train_function(force=True)
            self.on_train_batch_begin(batch)
        pruner = self._attached()
        step = pruner.clock()
        if pruner.is_due(step):
            pruner.update(step)

    def on_test_begin(self, logs: Any = None) -> None:
        # `SwapEMAWeights` may just have put averages in, where removed weights are not zero.
        if self.pruner is not None and self.pruner.begun:
            self.pruner.apply_masks()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        pruner = self._attached()
        step = pruner.clock()
        # The metrics of the epoch belong to the masks that were in force.
        report = pruner.report()
        pruner.update(step, metrics=logs or {})
        if logs is not None:
            logs["sparsity"] = report.overall
        self._summarize(report, step)
        if self.verbose:
            print(f"Pruning, step {step}: {report.line()}")

    def on_train_end(self, logs: Any = None) -> None:
        if self.pruner is None:
            return
        step = self.pruner.clock()
        if not self.pruner.begun and self.pruner.state.restored is not None:
            # Interrupted after the last epoch: no step is left to begin with.
            self.pruner.begin(step)
        if self.pruner.begun:
            self.pruner.update(step)
        self.pruner.finish()
        if self.verbose and step < self.method.end_step:
            print(
                f"Pruning ended at step {step}, before its end_step={self.method.end_step}: "
                f"{self.pruner.report().line()}"
            )
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def report(self) -> PruningReport:
        """The sparsity of each kernel, and what is not pruned, with the reason."""
        if self.pruner is None:
            raise ValueError("There is nothing to report before `fit` has seen this callback.")
        return self.pruner.report()

    def _attached(self) -> Pruner:
        if self.pruner is None:
            raise RuntimeError("Expected a training step before the end of an epoch.")
        return self.pruner

    def _make_pruner(self) -> None:
        self.pruner = Pruner(self.model, self.method, **self.options)
        if self.verbose and self.pruner.skipped:
            left_out = ", ".join(f"{n} ({why})" for n, why in self.pruner.skipped.items())
            print(f"Pruning leaves out: {left_out}")

    def _check_constraints(self) -> None:
        pruner = self._attached()
        taken = [
            name
            for name, kernel, constraint in zip(
                pruner.names, pruner.kernels, pruner.constraints, strict=True
            )
            if constraint not in constraints.attached(kernel.variable)
        ]
        if taken:
            raise ValueError(
                f"Two Pruning callbacks act on the kernels of {taken}. Give each of them its own "
                "`layers`."
            )

    def _summarize(self, report: PruningReport, step: int) -> None:
        if self._writer is None:
            return
        with self._writer.as_default(step):
            tf.summary.scalar("sparsity/overall", report.overall)
            for name, value in report.sparsity.items():
                tf.summary.scalar(f"sparsity/{name}", value)
        self._writer.flush()
