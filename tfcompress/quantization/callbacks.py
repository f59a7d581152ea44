"""Callbacks and helpers that steer quantization during `model.fit`."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.model.compressed import is_compressed
from tfcompress.model.finite import LossWatch
from tfcompress.model.kernels import iterate_layers
from tfcompress.model.replicas import check_replicas
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.operators.batch_norm import QuantizedBatchNormalization


class QuantizationSchedule(keras.callbacks.Callback):
    """Decides from the optimizer's step when activations are rounded and when ranges stay.

    Everything it changes is a variable in the graph, so nothing is traced again, and the clock is
    `optimizer.iterations`, so a resumed training goes on where it was.

    Args:
        start_step: Activations pass unrounded before this step, while their ranges already move.
        freeze_ranges_step: From this step on ranges stay as they are; `None`: never.
        freeze_batch_norm_step: From this step on batch norm normalizes by its moving statistics,
            which no longer move; γ and β keep training. `None`: never.
        reestimate_batch_norm: Data for `tfc.reestimate_batch_norm` at the end of `fit`.

    Raises:
        ValueError: A negative step; at the start of `fit`, a model without quantizers, or data for
            batch norm that do not fit.
    """

    def __init__(
        self,
        start_step: int = 0,
        freeze_ranges_step: int | None = None,
        freeze_batch_norm_step: int | None = None,
        reestimate_batch_norm: Any = None,
    ):
        super().__init__()
        self.reestimate_batch_norm = reestimate_batch_norm
        steps = {
            "start_step": start_step,
            "freeze_ranges_step": freeze_ranges_step,
            "freeze_batch_norm_step": freeze_batch_norm_step,
        }
        for name, step in steps.items():
            if step is not None and (not isinstance(step, int) or step < 0):
                raise ValueError(f"Expected `{name}` to be a step from 0 on. Received: {step!r}.")
        self.start_step = start_step
        self.freeze_ranges_step = freeze_ranges_step
        self.freeze_batch_norm_step = freeze_batch_norm_step
        self._watch = LossWatch("Ranges of activations and statistics of batch norms")

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        check_replicas(model)
        found = list(iterate_layers(model))
        self._quantizers = [layer for layer in found if isinstance(layer, FakeQuantize)]
        self._batch_norms = [q for q in found if isinstance(q, QuantizedBatchNormalization)]
        if not self._quantizers:
            raise ValueError(
                f"Expected a quantized model. Received: {model.name!r}, which has no quantizers. "
                "Train what tfcompress.quantize(model) returns."
            )
        self._last: tuple | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.reestimate_batch_norm is not None:
            check_reestimation(self.model, self.reestimate_batch_norm)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.update(int(self.model.optimizer.iterations.numpy()))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._watch.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._watch.end_batch(self.model, batch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.update(int(self.model.optimizer.iterations.numpy()))
        if self.reestimate_batch_norm is not None:
            reestimate_batch_norm(self.model, self.reestimate_batch_norm)

    def update(self, step: int) -> None:
        """Sets every variable to what the schedule says for `step`.

        A custom loop calls `set_model` once, this before every step, and once after the last.
        """
        state = (
            float(step >= self.start_step),
            float(self.freeze_ranges_step is not None and step >= self.freeze_ranges_step),
            float(self.freeze_batch_norm_step is not None and step >= self.freeze_batch_norm_step),
        )
        if state == self._last:
            return
        self._last = state
        enabled, ranges_frozen, batch_norm_frozen = state
        for quantizer in self._quantizers:
            quantizer.enabled.assign(enabled)
            if quantizer.fixed_range is None:
                quantizer.frozen.assign(ranges_frozen)
        for layer in self._batch_norms:
            layer.frozen.assign(batch_norm_frozen)


def reestimate_batch_norm(model: keras.Model, data: Any) -> None:
    """Replaces the moving statistics of batch norm by their average over `data`.

    Worth doing after low-bit training, where the moving average lags behind the weights
    (Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", 3.3). A kernel of
    one scale (`per_channel=False`) is rounded with γ/σ of the batch norm that is folded into it:
    there σ² stays, for another one would give the kernel other codes than were trained.

    Args:
        model: Any Keras model with batch norm; it is changed in place.
        data: Batches of inputs (or of (inputs, targets, …)): an iterable, a `tf.data.Dataset`, or
            one array that is cut into batches of 32.

    Raises:
        ValueError: No batch norm in the model, or no data.
    """
    from tfcompress.quantization.calibration.ranges import calibration_batches

    norms = _batch_norms(model)
    batches = calibration_batches(model, data)
    saved = [(layer.momentum, layer.trainable) for layer in norms]
    held = [
        (n.frozen, n.frozen.numpy()) for n in norms if isinstance(n, QuantizedBatchNormalization)
    ]
    frozen = [(q, q.trainable) for q in iterate_layers(model) if isinstance(q, FakeQuantize)]
    variables = [v for n in norms for v in (n.moving_mean, n.moving_variance)]
    trained = [v.numpy() for v in variables]
    totals = [0.0] * len(variables)
    try:
        # Momentum 0 makes the moving statistics those of the last batch alone.
        for layer in norms:
            layer.momentum, layer.trainable = 0.0, True
        for variable, _ in held:
            variable.assign(0.0)
        for quantizer, _ in frozen:
            quantizer.trainable = False
        for batch in batches:
            # A kernel of one scale is rounded with the batch norm that is folded into it.
            for variable, value in zip(variables, trained, strict=True):
                variable.assign(value)
            model(batch, training=True)
            totals = [t + v.numpy() for t, v in zip(totals, variables, strict=True)]
    finally:
        for layer, (momentum, trainable) in zip(norms, saved, strict=True):
            layer.momentum, layer.trainable = momentum, trainable
        for quantizer, trainable in frozen:
            quantizer.trainable = trainable
        for variable, value in held:
            variable.assign(value)
    fixed = {id(norm.moving_variance) for norm in _rounding_norms(model)}
    for variable, value, total in zip(variables, trained, totals, strict=True):
        variable.assign(value if id(variable) in fixed else total / len(batches))


def _rounding_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The batch norms that kernels of one scale are rounded with."""
    return [
        norm
        for layer in iterate_layers(model)
        if is_compressed(layer)
        for transform in layer.transformed.of_type(FakeQuantizeWeights).values()
        for norm in transform.rounded_with
        if isinstance(norm, keras.layers.BatchNormalization)
    ]


def check_reestimation(model: keras.Model, data: Any) -> None:
    """Raises at the start of a training what `reestimate_batch_norm` would at its end.

    The first batch is looked at; of an iterator, which can be read only once, nothing is.

    Raises:
        TypeError: Neither arrays nor iterable.
        ValueError: No batch norm in the model, no data, or data that do not fit the model.
    """
    from tfcompress.quantization.calibration.ranges import calibration_batches

    _batch_norms(model)
    if not hasattr(data, "__next__"):
        calibration_batches(model, data, limit=1)


def _batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    found = [
        layer
        for layer in iterate_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not found:
        raise ValueError(
            f"Expected a model with batch normalization. Received: {model.name!r} without any."
        )
    return found
