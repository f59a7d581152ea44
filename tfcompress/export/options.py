"""What an export accepts, measures and adds: the options of `export_tflite`, grouped."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tfcompress.export.bundle.preprocessing import check_preprocessing

#: How a float file may hold its weights, other than as float32.
FLOAT_WEIGHTS = ("float16", "dynamic")
#: Types of the codes of inputs and outputs.
CODE_TYPES = ("int8", "uint8")


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """What the file holds.

    Attributes:
        allow_float: Whether float tensors are accepted that the configuration did not ask for.
        float_io: Whether inputs and outputs are float.
        sparse_encoding: Whether zero weights are left out of the file.
        compare_float: Whether the float model is converted too, for its size.
        weights: How a float file holds its weights; `None` as float32.
        pointwise_as_dense: Whether pointwise convolutions of few bits are dense layers in the file.
        input_type: Type of the codes of quantized inputs, `"int8"` or `"uint8"`.
        output_type: Type of the codes of quantized outputs, likewise.
    """

    allow_float: bool = False
    float_io: bool = False
    sparse_encoding: bool = False
    compare_float: bool = False
    weights: str | None = None
    pointwise_as_dense: bool = False
    input_type: str = "int8"
    output_type: str = "int8"

    def __post_init__(self) -> None:
        for name in ("input_type", "output_type"):
            given = getattr(self, name)
            if given not in CODE_TYPES:
                raise ValueError(
                    f"Expected {name} in {CODE_TYPES}. Received: {given!r}. float_io=True is for "
                    "float inputs and outputs."
                )
            if given == "uint8" and (self.float_io or self.weights is not None):
                raise ValueError(
                    f"Expected {name}='uint8' for a file with quantized inputs and outputs. "
                    "Received: it together with float_io=True or weights=."
                )
        if self.weights is None:
            return
        if self.weights not in FLOAT_WEIGHTS:
            raise ValueError(
                f"Expected weights in {FLOAT_WEIGHTS}, for a float file, or None. Received: "
                f"weights={self.weights!r}. Other numbers of bits are what tfcompress.quantize "
                "(model, config) is given."
            )
        if self.sparse_encoding:
            raise ValueError(
                f"Expected either weights={self.weights!r} or sparse_encoding=True. Received both."
            )
        if self.pointwise_as_dense:
            raise ValueError(
                "Expected pointwise_as_dense with a quantized model, whose kernels of few bits it "
                f"packs. Received: it together with weights={self.weights!r}."
            )


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """How the file is compared with the model.

    Attributes:
        min_agreement: Smallest share of equal output steps to accept; `None` for a warning below
            `LOW_AGREEMENT`.
        samples: Most samples to run; `None` for all of `verify_data`, else for `most_samples`.
    """

    #: Below this share of equal output steps an export warns, where no `min_agreement` is given.
    LOW_AGREEMENT = 0.99
    #: Samples of calibration data or of synthetic data that small models run, and large ones.
    DEFAULT_SAMPLES, FEWEST_SAMPLES = 256, 64
    #: Numbers that a model computes for all samples together, where there are more than the fewest.
    DEFAULT_VALUES = 2**28

    min_agreement: float | None = None
    samples: int | None = None

    def most_samples(self, values_per_sample: int) -> int:
        """Samples of calibration data or of synthetic data to run.

        Args:
            values_per_sample: Numbers of all tensors that the model computes for a sample. Running
                a large model takes most of the time of its export.
        """
        if self.samples is not None:
            return self.samples
        affordable = self.DEFAULT_VALUES // values_per_sample
        return min(self.DEFAULT_SAMPLES, max(self.FEWEST_SAMPLES, affordable))

    def __post_init__(self) -> None:
        if self.samples is not None and (not isinstance(self.samples, int) or self.samples < 0):
            raise ValueError(
                f"Expected verify_samples of 0 or more. Received: verify_samples={self.samples!r}. "
                "0 leaves the comparison out; None runs all of verify_data."
            )
        share = self.min_agreement
        if share is not None and not (
            isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1
        ):
            raise ValueError(
                f"Expected min_agreement in 0..1. Received: min_agreement={share!r}. 0.99 asks for "
                "99 % of equal output steps."
            )


def check_label_names(labels: Any) -> None:
    """Raises `ValueError` unless `labels` is a list of texts."""
    is_list = isinstance(labels, Sequence) and not isinstance(labels, str)
    if not is_list or not all(isinstance(label, str) for label in labels):
        raise ValueError(
            f"Expected labels as a list of class names. Received: {labels!r}. Labels of samples "
            "are given as verify_data=(x, y)."
        )


@dataclasses.dataclass(frozen=True)
class BundleOptions:
    """What is written beside the file for an app.

    Attributes:
        golden_data: Samples for the golden pairs; `None` for synthetic ones.
        labels: Class names.
        preprocessing: Steps from raw data to the model's input.
    """

    golden_data: Any = None
    labels: Sequence[str] | None = None
    preprocessing: Sequence = ()

    def __post_init__(self) -> None:
        check_preprocessing(self.preprocessing)
        if self.labels is not None:
            check_label_names(self.labels)
