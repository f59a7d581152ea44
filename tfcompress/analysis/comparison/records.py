"""Frozen records of a comparison: agreement with a reference, figures of a model."""

from __future__ import annotations

import dataclasses

from tfcompress.export.runtime.latency import Ratio
from tfcompress.export.runtime.metrics import Scores


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a model's output agrees with the reference's.

    Attributes:
        top1: Share of samples (or positions) with the same largest value along the last axis;
            `None` where that axis has one value, and of a regression.
        snr_db: 10 · log₁₀(Σ y² / Σ (y − ŷ)²), y of the reference; infinite where both are equal.
        largest: Largest absolute difference.
        mean: Mean absolute difference.
    """

    top1: float | None
    snr_db: float
    largest: float
    mean: float


@dataclasses.dataclass(frozen=True)
class ModelFigures:
    """Figures of one model.

    Attributes:
        name: As it was given.
        kind: `"Keras"`, `"Keras, int8"` or `".tflite"`.
        scores: Metrics against the labels; `None` without labels.
        agreement: With the reference.
        num_bytes: Size of its file; a Keras model's is the `.tflite` that it converts to. `None`
            where there is none, as for all figures of the file.
        gzip_bytes: Its size under gzip, level 9: about what a phone downloads.
        parameters: Weights and biases in the file, with batch norms folded.
        nonzeros: Those that are not zero.
        macs: Multiplications with addition of one run.
        activation_bytes: The most bytes that activations hold at a time.
        latency_ms: Median milliseconds of a sample; `None` where it was not measured.
        latency_ratio: To the reference in the same round: median and quartiles.
    """

    name: str
    kind: str
    scores: Scores | None
    agreement: Agreement
    num_bytes: int | None
    gzip_bytes: int | None
    parameters: int | None
    nonzeros: int | None
    macs: int | None
    activation_bytes: int | None
    latency_ms: float | None
    latency_ratio: Ratio | None
