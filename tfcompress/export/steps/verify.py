"""Fourth step: the file is read back, loaded, run and compared with the model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfcompress.export.checks import check_floats, float_origins
from tfcompress.export.conversion.converter import Converter
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.flatbuffer.summary import FileSummary
from tfcompress.export.options import FileOptions, VerifyOptions
from tfcompress.export.report import SYNTHETIC
from tfcompress.export.runtime.codes import dequantize
from tfcompress.export.runtime.delegation import Delegation, delegation
from tfcompress.export.runtime.float_agreement import FloatAgreement, compare_with_float
from tfcompress.export.runtime.metrics import Scores, score
from tfcompress.export.runtime.parity import Parity, compare_outputs, lowest_agreement, run_model
from tfcompress.export.runtime.runner import Runner
from tfcompress.export.steps.prepare import Signature
from tfcompress.files.loading import mark_sound
from tfcompress.model.rewrite import as_float32
from tfcompress.model.subclassed import functional_for
from tfcompress.quantization.calibration.diagnosis import (
    FEW_CODES,
    outside_problems,
    range_problems,
    sample_problems,
)
from tfcompress.quantization.calibration.limits import tied_products, tiny_operands
from tfcompress.quantization.placement.plan import INT16_NOTE, TIED_PRODUCT

# Operators that multiply their int32 sum with a factor.
_KERNEL_OPS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was found in the file and measured on it.

    Attributes:
        summary: Its content.
        float_tensors: Float tensor → the Keras layer it comes from.
        runners: Signature key → the signature in LiteRT.
        parity: Signature key → agreement with the model, per output; not compared: left out.
        delegation: What XNNPACK takes.
        range_notes: What is suspicious in the ranges of tensors.
        platform_notes: Where other platforms may give other codes.
        float_agreement: Signature key → agreement with the float model, per output; `None` where
            that is not known. Not compared: left out.
        scores: Signature key, with `/output` behind it where there are several outputs →
            `"float model"`, `"Keras model"` and `"file"` → metrics against the labels of
            `verify_data`.
    """

    summary: FileSummary
    float_tensors: dict[str, str]
    runners: Mapping[str | None, Runner]
    parity: dict[str, tuple[Parity, ...]]
    delegation: Delegation
    range_notes: tuple[str, ...] = ()
    platform_notes: tuple[str, ...] = ()
    float_agreement: dict[str, tuple[FloatAgreement, ...] | None] = dataclasses.field(
        default_factory=dict
    )
    scores: dict[str, dict[str, Scores]] = dataclasses.field(default_factory=dict)


def verify(
    signatures: Sequence[Signature], data: bytes, converter: Converter, options: FileOptions
) -> Verified:
    """Reads, loads and runs the file.

    Raises:
        ValueError: Float tensors that the configuration did not ask for.
        ConversionError: LiteRT crashes when it loads the file.
        RuntimeError: LiteRT refuses the file.

    Warns:
        UserWarning: Samples of `verify_data` outside the calibrated ranges.
    """
    summary = inspect_tflite(data)
    models = {s.key: s.model for s in signatures}
    names = {s.key: s.output_names for s in signatures}
    origins = float_origins(summary, models, names)
    if not options.allow_float:
        check_floats(origins, summary, models, options.float_io)
    # A file on which LiteRT aborts must not end the user's process.
    converter.check_loads(data, ", ".join(models))
    mark_sound(data)
    runners: dict[str | None, Runner]
    runners = {s.key: Runner(data, signature=s.key) for s in summary.signatures}
    parity: dict[str, tuple[Parity, ...]] = {}
    scores: dict[str, dict[str, Scores]] = {}
    half_notes: tuple[str, ...] = ()
    for s in signatures:
        if s.samples is not None:
            runner = runners[s.key]
            expected = run_model(s.model, s.samples.arrays)
            names_of_inputs = [t.name for t in s.model.inputs]
            codes = runner.run_codes(dict(zip(names_of_inputs, s.samples.arrays, strict=True)))
            parity[s.key] = tuple(compare_outputs(expected, codes, runner, s.output_names))
            half_notes += _half_notes(s, codes, runner)
            if s.samples.labels is not None:
                scores |= _scores(s, expected, codes, runner)
    notes = _range_notes(signatures, parity, runners)
    with_float = {
        s.key: _float_agreement(s, runners[s.key])
        for s in signatures
        if s.samples is not None and s.is_quantized
    }
    found = delegation(data)
    platforms = (*half_notes, *_platform_notes(summary, found, list(models.values()), origins))
    return Verified(summary, origins, runners, parity, found, notes, platforms, with_float, scores)


def _half_notes(
    signature: Signature, codes: Mapping[str, np.ndarray], runner: Runner
) -> tuple[str, ...]:
    """How far the file is from what a model of mixed precision predicts by itself."""
    model, samples = signature.half_model, signature.samples
    if model is None or samples is None:
        return ()
    expected = run_model(model, samples.arrays)
    found = compare_outputs(expected, codes, runner, signature.output_names)
    return (
        f"{model.name!r} computes in 16 bits, the file and this report in float32. Its own "
        f"predict gives {min(p.equal for p in found):.2%} of the codes of the file; the largest "
        f"difference is {max(p.largest for p in found):g} steps.",
    )


def _scores(
    signature: Signature,
    expected: Sequence[np.ndarray],
    codes: Mapping[str, np.ndarray],
    runner: Runner,
) -> dict[str, dict[str, Scores]]:
    """Metrics of the float model, of the Keras model and of the file, against the labels."""
    if signature.samples is None or signature.samples.labels is None:
        return {}
    before = None
    if signature.float_model is not None:
        model = as_float32(functional_for(signature.float_model))
        before = run_model(model, signature.samples.arrays)
    names, scores = signature.output_names, {}
    for name, labels in signature.samples.labels.items():
        info, values, index = runner.outputs[name], codes[name], names.index(name)
        if info.is_quantized:
            values = dequantize(values, info.scale, info.zero_point)
        found = {"Keras model": score(labels, expected[index]), "file": score(labels, values)}
        if before is not None:
            found = {"float model": score(labels, before[index]), **found}
        scores[signature.key if len(names) == 1 else f"{signature.key}/{name}"] = found
    return scores


def _platform_notes(
    summary: FileSummary,
    found: Delegation,
    models: Sequence[keras.Model],
    float_tensors: Mapping[str, str],
) -> tuple[str, ...]:
    """Where the codes of this file may be others on another platform, or outside XNNPACK."""
    notes = []
    outside = sorted({name for name in found.ops_outside if name in _KERNEL_OPS})
    is_int16 = any(t.dtype == "int16" for t in summary.tensors)
    if is_int16:
        notes.append(
            f"{INT16_NOTE}. Training rounds as those of this LiteRT do. Other versions and "
            "platforms may multiply with fewer bits in FULLY_CONNECTED and MEAN, and then give "
            "codes that are a step of 16 bits off."
        )
    elif outside:
        notes.append(
            f"{', '.join(outside)} runs outside XNNPACK, where LiteRT multiplies with other "
            "integers than those of training: about one code in a thousand is a step off there, "
            "and more behind it."
        )
    rounded = _rounded_floats(summary, float_tensors)
    if rounded:
        shown = ", ".join(rounded[:8]) + (", …" if len(rounded) > 8 else "")
        notes.append(
            f"What {shown} computes in float is rounded to codes again. Float sums depend on the "
            "order of their terms: about one value in ten thousand may get the next code, and "
            "int8 layers behind it may enlarge that."
        )
    softmax = [op for op in summary.ops if op.name == "SOFTMAX"]
    if any(summary.tensor(op.outputs[0], op.subgraph).dtype == "int8" for op in softmax):
        notes.append(
            "The codes of SOFTMAX may be a step off on ARM, where LiteRT has another table for it. "
            "Its order of classes stays but for near ties. To have equal codes, end the model with "
            "the logits."
        )
    products = [name for model in models for name in tied_products(model)]
    if products:
        notes.append(f"{', '.join(dict.fromkeys(products))}: {TIED_PRODUCT}.")
    return tuple(notes)


def _rounded_floats(summary: FileSummary, float_tensors: Mapping[str, str]) -> list[str]:
    """The layers whose float results a QUANTIZE rounds; the inputs of the file are none."""
    computed = {(op.subgraph, index) for op in summary.ops for index in op.outputs}
    given = [
        summary.tensor(op.inputs[0], op.subgraph)
        for op in summary.ops
        if op.name == "QUANTIZE" and (op.subgraph, op.inputs[0]) in computed
    ]
    layers = [float_tensors.get(t.name, t.name) for t in given if t.dtype == "float32"]
    return list(dict.fromkeys(layers))


def _float_agreement(signature: Signature, runner: Runner) -> tuple[FloatAgreement, ...] | None:
    reference = signature.float_reference
    if reference is None:
        return None
    names = [tensor.name for tensor in signature.model.inputs]
    found = runner.predict(dict(zip(names, reference.inputs, strict=True)))
    return compare_with_float(reference, found, signature.output_names)


def _range_notes(
    signatures: Sequence[Signature],
    parity: Mapping[str, Sequence[Parity]],
    runners: Mapping[str | None, Runner],
) -> tuple[str, ...]:
    """What is suspicious in the ranges, for the report; of new samples it warns too."""
    notes: list[str] = []
    for signature in signatures:
        notes += range_problems(signature.model) + tiny_operands(signature.model)
        samples = signature.samples
        if samples is None:
            continue
        if samples.source != SYNTHETIC:
            notes += sample_problems(signature.model, samples.arrays)
        if samples.source == "verify_data":
            outside = outside_problems(signature.model, samples.arrays)
            for note in outside:
                warnings.warn(note, UserWarning, stacklevel=4)
            notes += outside
        notes += [
            f"The output {p.output!r} takes only {p.distinct} of its codes on {p.samples} samples. "
            "If its values lie far from 0, let the model give their difference from a mean."
            for p in parity.get(signature.key, ())
            if p.distinct < FEW_CODES <= p.samples
            and runners[signature.key].outputs[p.output].is_quantized
        ]
    return tuple(dict.fromkeys(notes))


def check_agreement(parity: Mapping[str, Sequence[Parity]], options: VerifyOptions) -> None:
    """Refuses an agreement below `min_agreement`; without one, warns of a low agreement.

    Raises:
        ValueError: The agreement is too small, or nothing was compared.
    """
    agreement = lowest_agreement(parity)
    if options.min_agreement is None:
        if agreement is not None and agreement < options.LOW_AGREEMENT:
            warnings.warn(
                f"Expected the file to compute what the Keras model computes. Received: only "
                f"{agreement:.2%} of the output steps are equal. report.parity names the outputs; "
                "compare accuracies on real data (verify_data), or keep the layers that differ in "
                "float: None in the configuration of a quantized model, or a float file without "
                "weights=. With min_agreement such a file is refused, or accepted without this "
                "warning.",
                UserWarning,
                stacklevel=3,
            )
        return
    if agreement is None:
        raise ValueError(
            "Expected verify_data or calibration data to measure the agreement that min_agreement "
            f"asks for. Received: min_agreement={options.min_agreement} and no data."
        )
    if agreement < options.min_agreement:
        worst = [p for outputs in parity.values() for p in outputs]
        raise ValueError(
            f"Expected at least {options.min_agreement:.2%} equal output steps. Received: "
            f"{agreement:.2%} ({worst}). Nothing was written."
        )
