"""Where a classifier looks: occlusion and gradients, and how two models agree in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from scipy import stats

from tfcompress.quantization.calibration.in_float import observed_by
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize

# Squares along each side of a picture that are covered in turn.
_GRID = 8
# Share of a map that counts as what matters most.
_TOP = 0.1


@dataclasses.dataclass(frozen=True)
class MapAgreement:
    """How two models agree in the regions that they rely on, on average over samples.

    Attributes:
        rank_correlation: Spearman's, of the two maps.
        top_overlap: Share of the top 10 % of the places that both have in common.
        samples: On how many samples.
    """

    rank_correlation: float
    top_overlap: float
    samples: int


def occlusion(run: Callable[[np.ndarray], np.ndarray], picture: np.ndarray) -> np.ndarray:
    """How much the probabilities fall where squares are covered, one after the other.

    The colour of the cover is the mean of the picture (Zeiler and Fergus 2014,
    https://arxiv.org/abs/1311.2901). It needs no gradient, so it works for files.

    Args:
        run: Pictures → probabilities (pictures, classes).
        picture: Height, width, channels.

    Returns:
        One row per square, one column per class.
    """
    outputs = run(np.concatenate([picture[None], _covered(picture)]))
    return outputs[:1] - outputs[1:]


def input_gradients(
    model: keras.Model, pictures: np.ndarray, classes: np.ndarray, output: int
) -> np.ndarray:
    """Size of the gradient of the class's output by each pixel, summed over channels.

    Rounding has no gradient. So the activations of a quantized model are not rounded here; its
    weights are.

    Args:
        model: Has one input.
        pictures: Samples, height, width, channels.
        classes: The class of each, by which the gradient is taken.
        output: Position of the output among the model's.

    Returns:
        Samples, height, width.
    """
    quantizers = [layer for layer in model.layers if isinstance(layer, FakeQuantize)]
    x = tf.constant(pictures, model.inputs[0].dtype)
    with observed_by(dict.fromkeys(quantizers, _pass_on)), tf.GradientTape() as tape:
        tape.watch(x)
        values = tree.flatten(model(x, training=False))[output]
        if values.shape[-1] == 1:
            # One logit or probability says both classes.
            chosen = values[:, 0]
        else:
            chosen = tf.gather(values, classes, batch_dims=1)
    return np.abs(np.asarray(tape.gradient(chosen, x))).sum(-1)


def agreement_of_maps(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> MapAgreement:
    """Compares maps, one pair per sample."""
    correlations, overlaps = [], []
    for first, second in zip(before, after, strict=True):
        a, b = first.ravel(), second.ravel()
        if np.ptp(a) > 0 and np.ptp(b) > 0:
            correlations.append(float(stats.spearmanr(a, b).statistic))
        count = max(1, round(_TOP * a.size))
        top = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (a, b)]
        overlaps.append(len(top[0] & top[1]) / count)
    mean = float(np.mean(correlations)) if correlations else 1.0
    return MapAgreement(mean, float(np.mean(overlaps)), len(overlaps))


def _pass_on(values: tf.Tensor) -> None:
    pass


def _covered(picture: np.ndarray) -> np.ndarray:
    """A copy of the picture for each square, which is covered by the mean colour."""
    height, width = picture.shape[:2]
    rows = np.linspace(0, height, min(_GRID, height) + 1).astype(int)
    columns = np.linspace(0, width, min(_GRID, width) + 1).astype(int)
    copies = np.repeat(picture[None], (len(rows) - 1) * (len(columns) - 1), axis=0)
    mean = picture.mean((0, 1))
    for i in range(len(rows) - 1):
        for j in range(len(columns) - 1):
            number = i * (len(columns) - 1) + j
            copies[number, rows[i] : rows[i + 1], columns[j] : columns[j + 1]] = mean
    return copies
