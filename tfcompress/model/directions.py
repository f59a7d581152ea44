"""Whether a metric is better when it is higher or lower."""

from __future__ import annotations

import re
from typing import Any, Literal

import keras

from tfcompress.model.keras_private import metric_direction

Direction = Literal["max", "min"]

# Words of a name: a part of it ends with one of them ("rmse", "crossentropy") or begins with a long
# one ("errors").
_DIRECTIONS: dict[Direction, tuple[str, ...]] = {
    "min": (
        *("loss", "losses", "error", "err", "entropy", "perplexity", "hinge", "nll", "brier"),
        *(
            "mae",
            "mse",
            "mape",
            "msle",
            "divergence",
            "kld",
            "logcosh",
            "distance",
            "deviation",
            "drop",
        ),
    ),
    "max": (
        *("acc", "accuracy", "auc", "precision", "recall", "f1", "fbeta", "iou", "jaccard"),
        *("dice", "r2", "psnr", "ssim", "correlation", "likelihood", "specificity"),
    ),
}
_PHRASES: dict[Direction, tuple[str, ...]] = {
    "min": ("false_positive", "false_negative"),
    "max": ("true_positive", "true_negative", "f_score"),
}
_LONG = 5
_NEGATED = ("neg", "negative", "negated")


def direction(monitor: str) -> Direction:
    """Whether a metric is better when it is higher, decided by its name.

    A name that begins with `neg` stands for the negative of what follows.

    Raises:
        ValueError: The name does not tell.
    """
    found = direction_of_name(monitor)
    if found is not None:
        return found
    raise ValueError(
        "Expected a metric whose name tells whether more is better, or mode='max' or mode='min'. "
        f"Received: monitor={monitor!r}, mode='auto'"
    )


def direction_of_name(name: str) -> Direction | None:
    """As `direction`; `None` where the name does not tell."""
    parts = [
        part.lower()
        for part in re.split(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", name.removeprefix("val_"))
        if part
    ]
    if parts and parts[0] in _NEGATED:
        rest = direction_of_name("_".join(parts[1:]))
        return None if rest is None else ("max" if rest == "min" else "min")
    # In this order: "accuracy_loss" is a loss.
    for mode, words in _DIRECTIONS.items():
        if any(phrase in "_".join(parts) for phrase in _PHRASES[mode]):
            return mode
        if any(_is(word, part) for word in words for part in (*parts, "".join(parts))):
            return mode
    return None


def direction_of(metric: Any, name: str) -> Direction | None:
    """Whether a metric is better when it is higher: by its class, else by its name.

    Args:
        metric: A Keras metric or loss, or a function.
        name: What it is called.

    Returns:
        `None` where neither tells.
    """
    if isinstance(metric, keras.losses.Loss):
        return "min"
    if isinstance(metric, keras.metrics.Metric):
        by_class = metric_direction(metric)
        # Counts of right and wrong: Keras says nothing of them but by the names of the classes.
        return by_class or direction_of_name(type(metric).__name__) or direction_of_name(name)
    # Keras knows which functions are losses.
    wrapped = keras.metrics.MeanMetricWrapper(metric, name=name)
    return metric_direction(wrapped) or direction_of_name(name)


def _is(word: str, part: str) -> bool:
    return part.endswith(word) or (len(word) >= _LONG and part.startswith(word))
