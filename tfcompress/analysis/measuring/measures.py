"""How far the outputs of a compressed model are from those of the float model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np
from keras import tree

from tfcompress.model.compilation import loss_names
from tfcompress.model.graph import output_structure, producer

Kind = Literal["logits", "probabilities", "logit", "probability", "values"]

#: What the divergence of each kind of output is.
NAMES: dict[Kind, str] = {
    "logits": "KL divergence of the softmax",
    "probabilities": "KL divergence",
    "logit": "KL divergence of yes and no of the sigmoid",
    "probability": "KL divergence of yes and no",
    "values": "squared error over variance",
}

_TINY = 1e-9


def output_kinds(model: keras.Model, outputs: Sequence[np.ndarray]) -> list[Kind]:
    """What each output of a model holds.

    Probabilities are recognized by their values. Other outputs with a binary cross-entropy are
    logits of yes and no, each channel its own. Of others of two channels or more, those that have
    another cross-entropy, or of a model that is not compiled, are logits of classes.

    Args:
        model: The float model, compiled as the user's.
        outputs: Its outputs on samples, `(n, …)` each.
    """
    losses = loss_names(model)
    # A model that is not compiled says nothing; of a compiled one, an output may have no loss.
    is_silent = getattr(model, "loss", None) is None
    symbols = tree.flatten(output_structure(model))
    return [
        _kind("entropy" if is_silent else loss or "", _activation(symbol), np.asarray(output))
        for loss, symbol, output in zip(losses, symbols, outputs, strict=True)
    ]


def divergence(kind: Kind, reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The distance of outputs from a reference, per sample.

    - `"logits"`, `"probabilities"`: KL(p ‖ q) = Σ p · log(p / q) over the last axis, p the
      reference, averaged over all other axes;
    - `"probability"`: the same of (p, 1 − p); `"logit"`: p the sigmoid;
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
    if kind in ("logits", "logit"):
        if kind == "logit":
            p, q = np.stack([p, 0 * p], -1), np.stack([q, 0 * q], -1)
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        found = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    else:
        if kind == "probability":
            p, q = np.stack([p, 1 - p], -1), np.stack([q, 1 - q], -1)
        p, q = np.clip(p, _TINY, 1), np.clip(q, _TINY, 1)
        found = (p * np.log(p / q)).sum(-1)
    # Rounding may leave a tiny negative number.
    return np.maximum(found.reshape(len(p), -1).mean(1), 0.0)


def _kind(loss: str, activation: str, output: np.ndarray) -> Kind:
    inside = np.all(output >= 0) and np.all(output <= 1)
    channels = output.shape[-1] if output.ndim > 1 else 1
    # Probabilities in bfloat16 have errors of 2⁻⁹.
    if inside and channels > 1 and np.allclose(output.sum(-1), 1, atol=1e-2):
        return "probabilities"
    if inside and activation == "sigmoid":
        return "probability"
    if "binary" in loss and "entropy" in loss:
        return "probability" if inside else "logit"
    if channels > 1 and ("entropy" in loss or "nll" in loss):
        return "logits"
    return "values"


def _activation(symbol: keras.KerasTensor) -> str:
    """The activation of the layer that gives an output."""
    call = producer(symbol)
    if call is None:
        return ""
    activation = getattr(call[0], "activation", None)
    return getattr(activation, "__name__", type(call[0]).__name__).lower()


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
