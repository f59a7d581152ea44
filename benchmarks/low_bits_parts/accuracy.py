"""ResNet-8 on CIFAR-10: float, then every method at 8, 4, 3 and 2 bits, from one float model.

The first convolution, the last layer, the input and the logits have 8 bits, except in the rows
"in all layers". Every row trains alike: Adam with a cosine, ranges frozen for the last quarter,
statistics of batch norms for the second half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

import tfcompress as tfc
from benchmarks.low_bits_parts.row import Part, Settings
from recipes.batches import augmented
from recipes.models import with_fused_batch_norm
from tfcompress.model.rewrite import copy_variables
from tfcompress.tools import datasets

EPOCHS, BATCH, CALIBRATION = 1, 128, 512
# Images that statistics of batch norms are computed from anew.
REESTIMATION = 4096


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to quantize and train.

    Attributes:
        weights: Scheme of the kernels; `None` keeps the model in float.
        preset: A preset in place of the schemes.
        float_weights: How the file of a float model holds its weights; `None` for no file of it.
        activations: Scheme of the tensors.
        relu: Scheme of what a ReLU produces, where it differs.
        learning_rate: Start of the cosine.
        all_layers: The first and the last layer get the bits of the rest.
        free_statistics: Statistics of batch norms move to the last step, as in a float training.
        reestimate: Statistics of batch norms are computed anew after training.
        callbacks: Makes the callbacks of a training of so many steps.
    """

    weights: tfc.WeightScheme | None = dataclasses.field(default_factory=tfc.WeightScheme)
    preset: str | None = None
    float_weights: str | None = None
    activations: tfc.ActivationScheme = dataclasses.field(default_factory=tfc.ActivationScheme)
    relu: tfc.ActivationScheme | None = None
    learning_rate: float = 1e-3
    all_layers: bool = False
    free_statistics: bool = False
    reestimate: bool = False
    callbacks: Callable[[int], list[keras.callbacks.Callback]] = lambda steps: []


def _lsq(bits: int, per_channel: bool = True) -> tfc.WeightScheme:
    return tfc.WeightScheme(
        bits, per_channel=per_channel, narrow_range=bits > 2, quantizer=tfc.LSQ()
    )


def _dorefa(bits: int, per_channel: bool = True) -> tfc.WeightScheme:
    return tfc.WeightScheme(bits, per_channel=per_channel, quantizer=tfc.DoReFaWeights())


def _dampening(steps: int) -> list[keras.callbacks.Callback]:
    return [tfc.callbacks.OscillationDampening(1e-2, end_step=steps)]


def _freezing(steps: int) -> list[keras.callbacks.Callback]:
    return [tfc.callbacks.IterativeFreezing(0.01, end_step=steps)]


def _swinging(bits: int, per_channel: bool = True) -> dict[str, Row]:
    """Rows as in the paper on oscillations: statistics move, and weights that swing spoil them."""
    name = f"W{bits}A8 LSQ" + ("" if per_channel else " per tensor")
    row = Row(_lsq(bits, per_channel), free_statistics=True)
    methods = {"": row.callbacks, " and dampening": _dampening, " and freezing": _freezing}
    rows = {
        f"{name}{method} with free statistics": dataclasses.replace(row, callbacks=callbacks)
        for method, callbacks in methods.items()
    }
    return rows | {
        f"{row_name} re-estimated": dataclasses.replace(row, reestimate=True)
        for row_name, row in rows.items()
    }


_A4 = tfc.ActivationScheme(4)
_A4_LSQ = tfc.ActivationScheme(4, quantizer=tfc.LSQPlus())
_PACT = tfc.ActivationScheme(4, quantizer=tfc.PACT())

#: Name → row; those that the goals are about come first.
ROWS = {
    "float": Row(None),
    "float16 file": Row(None, float_weights="float16"),
    "dynamic-range file": Row(None, float_weights="dynamic"),
    "W4A8 min-max": Row(tfc.WeightScheme(4)),
    "W4A8 LSQ": Row(_lsq(4)),
    "W2A8 LSQ": Row(_lsq(2)),
    "W2A8 DoReFa": Row(_dorefa(2)),
    # One scale per kernel, as in both papers.
    "W2A8 LSQ per tensor": Row(_lsq(2, per_channel=False)),
    "W2A8 DoReFa per tensor": Row(_dorefa(2, per_channel=False)),
    "W4A4 LSQ": Row(_lsq(4), activations=_A4_LSQ),
    "W4A4 PACT and DoReFa": Row(_dorefa(4), activations=_A4, relu=_PACT),
    "W4A8 APoT": Row(tfc.WeightScheme(4, quantizer=tfc.APoT())),
    "W2A8 ternary": Row(tfc.WeightScheme(2, quantizer=tfc.TernaryWeights())),
    "W8A8 min-max": Row(),
    "W8A16 (int16x8)": Row(preset="int16x8"),
    "W4A4 min-max": Row(tfc.WeightScheme(4), activations=_A4),
    "W3A8 LSQ": Row(_lsq(3)),
    "W3A8 min-max": Row(tfc.WeightScheme(3)),
    "W2A8 min-max": Row(tfc.WeightScheme(2, narrow_range=False)),
    "W2A8 LSQ in all layers": Row(_lsq(2), all_layers=True),
    "W4A8 LSQ in all layers": Row(_lsq(4), all_layers=True),
    "W4A4 LSQ in all layers": Row(_lsq(4), activations=_A4_LSQ, all_layers=True),
    "W4A8 LSQ and dampening": Row(_lsq(4), callbacks=_dampening),
    "W2A8 LSQ and dampening": Row(_lsq(2), callbacks=_dampening),
    "W4A4 LSQ and dampening": Row(_lsq(4), activations=_A4_LSQ, callbacks=_dampening),
    "W4A4 LSQ and freezing": Row(_lsq(4), activations=_A4_LSQ, callbacks=_freezing),
    "W4A8 LSQ re-estimated": Row(_lsq(4), reestimate=True),
    "W4A4 LSQ re-estimated": Row(_lsq(4), activations=_A4_LSQ, reestimate=True),
    **_swinging(4),
    **_swinging(3),
    **_swinging(4, per_channel=False),
    "W2A8 LSQ and freezing": Row(_lsq(2), callbacks=_freezing),
    "W4A8 LSQ and freezing": Row(_lsq(4), callbacks=_freezing),
    "W8A8 LSQ": Row(tfc.WeightScheme(quantizer=tfc.LSQ())),
    "W3A8 APoT": Row(tfc.WeightScheme(3, quantizer=tfc.APoT())),
    "W3A8 DoReFa": Row(_dorefa(3)),
    "W4A8 DoReFa": Row(_dorefa(4)),
}


def configuration(row: Row, model: keras.Model) -> tfc.QuantizationConfig:
    """The configuration of a row for a model that begins with a convolution and ends in logits."""
    kernels = [
        la for la in model.layers if isinstance(la, keras.layers.Conv2D | keras.layers.Dense)
    ]
    first, last = kernels[0].name, kernels[-1].name
    by_type = {"Rescaling": tfc.Scheme()}
    if row.relu is not None:
        by_type["ReLU"] = tfc.Scheme(row.weights, row.relu)
    eight = tfc.WeightScheme()
    ends = row.weights if row.all_layers else eight
    by_name = {
        first: tfc.Scheme(ends, row.activations),
        # Nothing reads the logits in codes; four bits of them would be a loss of their own.
        last: tfc.Scheme(ends),
    }
    return tfc.QuantizationConfig(tfc.Scheme(row.weights, row.activations), by_type, by_name)


def fit(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    row: Row,
    seed: int,
    epochs: int,
    callbacks,
) -> None:
    steps = epochs * (len(labels) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(row.learning_rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(
        augmented(images, labels, seed),
        epochs=epochs,
        verbose=0,
        shuffle=False,
        callbacks=callbacks,
    )


def accuracy(logits: np.ndarray, labels: np.ndarray) -> str:
    return f"{100 * np.mean(logits.argmax(-1) == labels):.2f}"


def measure(
    name: str, seed: int, epochs: int, settings: Settings, model: keras.Model | None = None
) -> Mapping[str, Any]:
    """The figures of a row.

    Args:
        name: Of `ROWS`.
        seed: Of training.
        epochs: Of training.
        settings: What the command was asked for.
        model: The float model that training begins with; by default the given ResNet-8.
    """
    row = ROWS[name]
    (images, labels), (test_images, test_labels) = datasets.load("cifar10", settings.data_dir)
    if model is None:
        model = keras.saving.load_model(settings.resnet8, compile=False)
    keras.utils.set_random_seed(1000 + seed)
    steps, callbacks = epochs * (len(labels) // BATCH), []
    chosen = np.random.default_rng(seed).choice(len(labels), CALIBRATION, replace=False)
    if row.weights is None:
        trained = with_fused_batch_norm(model)
    else:
        config = row.preset or configuration(row, model)
        trained = tfc.quantize(model, config, calibration_data=images[chosen])
        callbacks = [
            tfc.callbacks.QuantizationSchedule(
                0, steps * 3 // 4, None if row.free_statistics else steps // 2
            ),
            *row.callbacks(steps),
        ]
    fit(trained, images, labels, row, seed, epochs, callbacks)
    if row.reestimate:
        many = np.random.default_rng(seed).choice(len(labels), REESTIMATION, replace=False)
        tfc.reestimate_batch_norm(trained, np.split(images[many], REESTIMATION // BATCH))
    found = {
        "learning_rate": row.learning_rate,
        "keras_accuracy": accuracy(
            trained.predict(test_images, batch_size=500, verbose=0), test_labels
        ),
    }
    if row.weights is None and row.float_weights is None:
        return found
    if row.weights is None:
        # The file is that of Keras' own batch norms.
        for layer in model.layers:
            copy_variables(trained.get_layer(layer.name), layer, missing="skip")
        trained = model
    path = settings.folder / "accuracy.tflite"
    report = tfc.export_tflite(
        trained, path, verify_data=test_images[:500], weights=row.float_weights
    )
    outputs = next(iter(tfc.Runner(path).predict(test_images).values()))
    parity = report.parity["serving_default"][0]
    return {
        **found,
        "file_accuracy": accuracy(outputs, test_labels),
        # Of a float file there are no steps that could be equal.
        "equal": "" if row.weights is None else f"{100 * parity.equal:.2f}",
        "bytes": report.num_bytes,
    }


PART = Part(tuple(ROWS), EPOCHS, measure)
