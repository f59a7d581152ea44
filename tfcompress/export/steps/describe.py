"""Fifth step: the report, and the files beside the `.tflite`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfcompress.export.bundle.files import describe_files
from tfcompress.export.files import gzip_size
from tfcompress.export.options import BundleOptions
from tfcompress.export.report import ExportReport
from tfcompress.export.runtime.metrics import Scores
from tfcompress.export.steps.convert import Converted
from tfcompress.export.steps.prepare import Signature
from tfcompress.export.steps.verify import Verified
from tfcompress.export.steps.write_exact import Written
from tfcompress.quantization.fake_quant.rescaled_input import RescaledInput


def make_report(
    path: pathlib.Path,
    signatures: Sequence[Signature],
    converted: Converted,
    written: Written,
    verified: Verified,
) -> ExportReport:
    """Gathers what the steps have found."""
    summary, float_data = verified.summary, converted.float_data
    return ExportReport(
        path=str(path),
        num_bytes=summary.num_bytes,
        gzip_bytes=summary.gzip_bytes,
        float_num_bytes=None if float_data is None else len(float_data),
        float_gzip_bytes=None if float_data is None else gzip_size(float_data),
        ops=summary.op_counts,
        float_tensors=verified.float_tensors,
        flex_ops=summary.flex_ops,
        num_partitions=verified.delegation.num_partitions,
        fully_delegated=verified.delegation.is_fully_accelerated,
        ops_outside=verified.delegation.ops_outside,
        layers=written.layers,
        parity=verified.parity,
        verified_on={s.key: "" if s.samples is None else s.samples.source for s in signatures},
        patched=written.patched,
        unverified=written.unverified,
        dense_num_bytes=written.dense_num_bytes,
        dense_gzip_bytes=written.dense_gzip_bytes,
        sparse_layers=written.sparse_layers,
        signature_num_bytes={
            s.key: summary.constant_num_bytes(s.subgraph) for s in summary.signatures
        },
        constant_num_bytes=summary.constant_num_bytes(),
        range_notes=verified.range_notes,
        platform_notes=verified.platform_notes,
        input_notes=(*_input_notes(signatures, verified), *written.notes),
        float_agreement=verified.float_agreement,
        scores=verified.scores,
        recipe=next((r for s in signatures if (r := getattr(s.model, "recipe", None))), None),
    )


def _input_notes(signatures: Sequence[Signature], verified: Verified) -> tuple[str, ...]:
    """What the codes of inputs are whose Rescaling is folded."""
    notes = []
    for signature in signatures:
        infos = verified.runners[signature.key].inputs
        for layer in signature.model.layers:
            info = infos.get(layer.source) if isinstance(layer, RescaledInput) else None
            if info is None or not info.is_quantized:
                continue
            codes = f"value / {info.scale:.6g} + {info.zero_point}"
            if info.scale == 1:
                codes = "the pixel itself"
                if info.zero_point:
                    codes = f"pixel − {-info.zero_point}"
            rescaling = "" if layer.rescaling is None else f" {layer.rescaling!r}"
            notes.append(
                f"The Rescaling{rescaling} is no operator of the file: a code of {info.name!r} is "
                f"{codes}. The file's own scale and zero point of it are of the rescaled values."
            )
    return tuple(dict.fromkeys(notes))


def describe(
    path: pathlib.Path,
    signatures: Sequence[Signature],
    verified: Verified,
    report: ExportReport,
    options: BundleOptions,
) -> dict[pathlib.Path, str]:
    """Returns the content of the files beside the `.tflite`: path → text.

    Raises:
        ValueError: Labels that fit no output, golden samples that do not fit or are missing.
        TypeError: What JSON cannot hold.
    """
    figures = {k: v for k, v in report.to_dict().items() if k not in ("path", "layers")}
    # By class they are long; the card has the means.
    figures["scores"] = {
        key: {model: _headlines(scores) for model, scores in found.items()}
        for key, found in report.scores.items()
    }
    return describe_files(
        path,
        verified.summary,
        verified.runners,
        preprocessing=options.preprocessing,
        labels=options.labels,
        report=figures,
        golden_data=_golden_data(options.golden_data, signatures),
    )


def _headlines(scores: Scores) -> dict[str, float]:
    """The metrics that are one number each."""
    values = {f.name: getattr(scores, f.name) for f in dataclasses.fields(scores)}
    return {name: v for name, v in values.items() if isinstance(v, int | float)}


def _golden_data(given: Any, signatures: Sequence[Signature]) -> Any:
    """Samples for the golden pairs: those given; those that were verified, where the file does
    not tell which integers (token numbers, say) are valid; else `None` for synthetic ones."""
    if given is not None:
        return dict(given) if isinstance(given, Mapping) else given
    inputs = [tensor for s in signatures for tensor in s.model.inputs]
    if all(keras.backend.is_float_dtype(tensor.dtype) for tensor in inputs):
        return None
    found = {}
    for signature in signatures:
        if signature.samples is None:
            return None
        names = [tensor.name for tensor in signature.model.inputs]
        found[signature.key] = dict(zip(names, signature.samples.arrays, strict=True))
    return found if len(found) > 1 else next(iter(found.values()))
