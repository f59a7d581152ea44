"""How far the outputs of a compressed model are from those of the float model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np

Kind = Literal["logits", "probabilities", "probability", "values"]

#: What the divergence of each kind of output is.
NAMES: dict[Kind, str] = {
    "logits": "KL divergence of the softmax",
    "probabilities": "KL divergence",
    "probability": "KL divergence of yes and no",
    "values": "squared error over variance",
}

_TINY = 1e-9


def output_kinds(model: keras.Model, outputs: Sequence[np.ndarray]) -> list[Kind]:
    """What each output of a model holds.

    Probabilities are recognized by their values. Of other outputs of two channels or more, those
    of a model that is compiled with a cross-entropy, or not compiled, are logits.

    Args:
        model: The float model.
        outputs: Its outputs on samples, `(n, …)` each.
    """
    return [_kind(model, np.asarray(output)) for output in outputs]


def divergence(kind: Kind, reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The distance of outputs from a reference, per sample.

    - `"logits"`, `"probabilities"`: KL(p ‖ q) = Σ p · log(p / q) over the last axis, p the
      reference, averaged over all other axes;
    - `"probability"`: the same of (p, 1 − p);
    - `"values"`: mean squared error over the variance of the reference.

    Args:
        kind: What the outputs hold.
        reference: Outputs of the float model, `(n, …)`.
        outputs: Those of the compressed one, of the same shape.

    Returns:
        One number >= 0 per sample, in nats for a KL divergence, `(n,)`.
    """
    p, q = np.asarray(reference, np.float64), np.asarray(outputs, np.float64)
    if kind == "values":
        variance = max(float(p.var()), _TINY)
        return np.square(p - q).reshape(len(p), -1).mean(1) / variance
    if kind == "logits":
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        found = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    else:
        if kind == "probability":
            p, q = np.stack([p, 1 - p], -1), np.stack([q, 1 - q], -1)
        p, q = np.clip(p, _TINY, 1), np.clip(q, _TINY, 1)
        found = (p * np.log(p / q)).sum(-1)
    # Rounding may leave a tiny negative number.
    return np.maximum(found.reshape(len(p), -1).mean(1), 0.0)


def _kind(model: keras.Model, output: np.ndarray) -> Kind:
    inside = np.all(output >= 0) and np.all(output <= 1)
    channels = output.shape[-1] if output.ndim > 1 else 1
    if inside and channels > 1 and np.allclose(output.sum(-1), 1, atol=1e-3):
        return "probabilities"
    if inside and _last_activation(model) == "sigmoid":
        return "probability"
    if channels > 1 and _has_cross_entropy(model):
        return "logits"
    return "values"


def _last_activation(model: keras.Model) -> str:
    activation = getattr(model.layers[-1], "activation", None)
    return getattr(activation, "__name__", "")


def _has_cross_entropy(model: keras.Model) -> bool:
    """Whether the loss is a cross-entropy; so is that of a model that is not compiled."""
    loss = getattr(model, "loss", None)
    if loss is None:
        return True
    named = str(getattr(loss, "name", None) or getattr(loss, "__name__", None) or loss).lower()
    return "entropy" in named or "nll" in named


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
