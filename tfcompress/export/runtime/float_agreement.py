"""How a file's outputs agree with those of the float model that it was quantized from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

# Below these an output is called low.
_LOW_TOP1, _LOW_SNR = 0.95, 15.0


@dataclasses.dataclass(frozen=True)
class FloatAgreement:
    """How one output of the file agrees with the float model.

    Attributes:
        output: Its name.
        top1: Share of samples (or positions) on which both have their largest value along the
            last axis at the same place; `None` where that axis has one value.
        snr_db: 10 · log₁₀(Σ y² / Σ (y − ŷ)²) with y of the float model and ŷ of the file, in dB;
            infinite where both are equal.
        samples: How many samples were run.
    """

    output: str
    top1: float | None
    snr_db: float
    samples: int

    @property
    def is_low(self) -> bool:
        """Whether so much is lost that it is worth trying other options."""
        return self.snr_db < _LOW_SNR if self.top1 is None else self.top1 < _LOW_TOP1


@dataclasses.dataclass(frozen=True)
class FloatReference:
    """What the float model gives for some inputs.

    Attributes:
        inputs: One array per input of the model, in its order.
        outputs: One array per flat output.
    """

    inputs: list[np.ndarray]
    outputs: list[np.ndarray]


def compare_with_float(
    reference: FloatReference, found: Mapping[str, np.ndarray], names: Sequence[str]
) -> tuple[FloatAgreement, ...]:
    """Compares the real values that a file gives with those of the float model.

    Args:
        reference: Inputs and outputs of the float model.
        found: Output name → what the file gives for the same inputs.
        names: The file's names of the model's flat outputs.
    """
    return tuple(
        _compare(name, np.asarray(expected, np.float64), np.asarray(found[name], np.float64))
        for name, expected in zip(names, reference.outputs, strict=True)
    )


def _compare(name: str, expected: np.ndarray, found: np.ndarray) -> FloatAgreement:
    top1 = None
    if expected.ndim > 1 and expected.shape[-1] > 1:
        top1 = float(np.mean(expected.argmax(-1) == found.argmax(-1)))
    noise, signal = float(np.sum((expected - found) ** 2)), float(np.sum(expected**2))
    snr = math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)
    return FloatAgreement(name, top1, snr, len(expected))
