"""Whether a metric is better when it is higher or lower, by its name."""

from __future__ import annotations

from typing import Literal

_DIRECTIONS: dict[Literal["max", "min"], tuple[str, ...]] = {
    "min": ("loss", "error", "entropy", "perplexity", "hinge", "mae", "mse", "mape", "msle"),
    "max": ("acc", "auc", "precision", "recall", "f1", "f_score", "iou", "dice", "r2", "psnr"),
}


def direction(monitor: str) -> Literal["max", "min"]:
    """Whether a metric is better when it is higher, decided by its name.

    Raises:
        ValueError: The name does not tell.
    """
    name = monitor.removeprefix("val_")
    # In this order: "accuracy_loss" is a loss.
    for mode, words in _DIRECTIONS.items():
        if any(word in name for word in words):
            return mode
    raise ValueError(
        "Expected a metric whose name tells whether more is better, or mode='max' or mode='min'. "
        f"Received: monitor={monitor!r}, mode='auto'"
    )
