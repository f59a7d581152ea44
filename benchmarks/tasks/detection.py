"""A detector after SSD (Liu et al. 2016): two scales, a head of boxes and one of scores."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.tasks import data
from benchmarks.tasks.task import Outputs, Split, Task

SIZE, BACKGROUND = 64, 10
#: Cells along a side of each scale, and their pixels.
GRIDS = ((8, 8), (4, 16))
#: Scenes of the training and of the test.
COUNTS = (2500, 300)
#: Digits smaller than this belong to the finer scale.
_SMALL = 20


def detector(train: Split | None = None) -> keras.Model:
    """An image → boxes (cells, 4) and scores (cells, 11) of 64 fine and 16 coarse cells."""
    inputs = keras.Input((SIZE, SIZE, 1), name="image")
    x = layers.Rescaling(1 / 255)(inputs)
    boxes, scores = [], []
    for filters in (8, 16, 32, 48):
        for strides in (1, 2):
            x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        if filters >= 32:
            y = layers.Conv2D(48, 3, padding="same", activation="relu")(x)
            boxes.append(layers.Reshape((-1, 4))(layers.Conv2D(4, 1)(y)))
            scores.append(layers.Reshape((-1, 11))(layers.Conv2D(11, 1)(y)))
    return keras.Model(
        inputs,
        {
            "boxes": layers.Concatenate(axis=1, name="boxes")(boxes),
            "scores": layers.Concatenate(axis=1, name="scores")(scores),
        },
    )


def _cells() -> Iterator[tuple[int, int, int]]:
    """(top, left, pixels) of every cell."""
    for cells, pixels in GRIDS:
        for row in range(cells):
            for column in range(cells):
                yield row * pixels, column * pixels, pixels


def scenes(data_dir: str | None) -> tuple[Split, Split]:
    """One to three digits of 14 or 28 pixels on a canvas of 64×64.

    Targets are `boxes`, (cells, 5): offset of the centre and logarithm of the size, in cells, and
    whether there is one; and `scores`, (cells,): the class. `extra` has the boxes in pixels.
    """
    splits = []
    for seed, count in enumerate(COUNTS):
        random = np.random.default_rng(seed)
        digits = data.pictures("mnist", 20000, 2000, data_dir)[seed]
        images, classes = digits.inputs[0], digits.targets
        canvas = np.zeros((count, SIZE, SIZE, 1), np.float32)
        targets = {
            "boxes": np.zeros((count, 80, 5), np.float32),
            "scores": np.full((count, 80), BACKGROUND, np.int32),
        }
        truth: list[list[tuple]] = []
        for i in range(count):
            truth.append(_scene(random, images, classes, canvas[i]))
            for box in truth[-1]:
                _assign(box, targets["boxes"][i], targets["scores"][i])
        splits.append(Split([canvas], targets, truth))
    return splits[0], splits[1]


def _scene(random, images, classes, canvas) -> list[tuple]:
    found: list[tuple] = []
    for _ in range(random.integers(1, 4)):
        number = random.integers(len(images))
        digit = images[number]
        if random.integers(2):
            digit = digit.reshape(14, 2, 14, 2, 1).mean((1, 3))
        side = len(digit)
        row, column = random.integers(0, SIZE - side, 2)
        if canvas[row : row + side, column : column + side].any():
            continue
        canvas[row : row + side, column : column + side] = np.round(digit)
        rows, columns = (np.flatnonzero(digit.max(axis)[..., 0] > 30) for axis in (1, 0))
        found.append(
            (
                *(row + rows[0], column + columns[0]),
                *(row + rows[-1] + 1, column + columns[-1] + 1),
                int(classes[number]),
            )
        )
    return found


def _assign(box: tuple, boxes: np.ndarray, scores: np.ndarray) -> None:
    top, left, bottom, right, label = box
    scale = int(max(bottom - top, right - left) >= _SMALL * 0.75)
    cells, pixels = GRIDS[scale]
    row, column = (top + bottom) / 2 / pixels, (left + right) / 2 / pixels
    index = scale * GRIDS[0][0] ** 2 + int(row) * cells + int(column)
    size = np.log([(bottom - top) / pixels, (right - left) / pixels])
    boxes[index] = (row - int(row) - 0.5, column - int(column) - 0.5, *size, 1.0)
    scores[index] = label


@keras.saving.register_keras_serializable(package="benchmarks")
def boxes_loss(true, found):
    """Smooth L1, of the cells that have a box."""
    error = tf.abs(true[..., :4] - found)
    smooth = tf.where(error < 1.0, 0.5 * error**2, error - 0.5)
    return 4.0 * tf.reduce_sum(smooth * true[..., 4:], (1, 2))


@keras.saving.register_keras_serializable(package="benchmarks")
def scores_loss(true, found):
    """Cross-entropy of all cells, summed; one without a digit counts a tenth."""
    true = tf.cast(true, tf.int32)
    weights = tf.where(true == BACKGROUND, 0.1, 1.0)
    return tf.reduce_sum(weights * tf.nn.sparse_softmax_cross_entropy_with_logits(true, found), 1)


def f1(outputs: Outputs, test: Split) -> float:
    """F1 of boxes of the right class and an IoU of half or more, in %."""
    right = given = true = 0
    for boxes, scores, truth in zip(outputs["boxes"], outputs["scores"], test.extra, strict=True):
        found = _detections(boxes, scores)
        left = list(truth)
        for box in found:
            match = [t for t in left if t[4] == box[4] and _iou(t, box) >= 0.5]
            if match:
                left.remove(match[0])
                right += 1
        given, true = given + len(found), true + len(truth)
    return 100 * 2 * right / max(1, given + true)


def _detections(boxes: np.ndarray, scores: np.ndarray) -> list[tuple]:
    """Boxes in pixels by falling score, without those that overlap a better one."""
    best, labels = scores[:, :BACKGROUND].max(-1), scores[:, :BACKGROUND].argmax(-1)
    margin = best - scores[:, BACKGROUND]
    cells, kept = list(_cells()), []
    for index in np.argsort(-margin):
        if margin[index] <= 0:
            break
        top, left, pixels = cells[index]
        row, column, height, width = boxes[index]
        row, column = top + (row + 0.5) * pixels, left + (column + 0.5) * pixels
        height, width = pixels * np.exp(height) / 2, pixels * np.exp(width) / 2
        box = (row - height, column - width, row + height, column + width, int(labels[index]))
        if all(_iou(box, other) < 0.4 for other in kept):
            kept.append(box)
    return kept


def _iou(one: tuple, other: tuple) -> float:
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, height) * max(0.0, width)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return shared / (sum(areas) - shared)


TASKS = (
    Task(
        name="detector",
        about="after SSD, heads of boxes and scores at two scales, MNIST digits on a canvas",
        metric="F1, %",
        load=scenes,
        build=detector,
        loss=lambda: {"boxes": boxes_loss, "scores": scores_loss},
        score=f1,
        epochs=20,
        extra_epochs=4,
        learning_rate=5e-3,
    ),
)
