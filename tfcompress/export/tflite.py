"""`export_tflite`: bake, lower, convert, write the exact scales, read back, run, compare."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.export.bundle.metadata import bundle_files, write_files
from tfcompress.export.checks import check_floats, check_limits, float_origins, missing_ranges
from tfcompress.export.conversion.converter import current_converter
from tfcompress.export.files import gzip_size, write_atomically
from tfcompress.export.flatbuffer.inspect import inspect_tflite
from tfcompress.export.flatbuffer.kernel_rows import float_kernels, layer_report
from tfcompress.export.flatbuffer.patch import patch
from tfcompress.export.flatbuffer.sparse import encode_sparse, sparse_float_layers
from tfcompress.export.lowering.lower import lower
from tfcompress.export.pruned_size import dense_gzip_size
from tfcompress.export.report import ExportReport
from tfcompress.export.runtime.delegation import delegation
from tfcompress.export.runtime.parity import Parity, measure_parity
from tfcompress.export.runtime.runner import Runner
from tfcompress.model.graph import Graph, output_structure
from tfcompress.model.rewrite import as_float32
from tfcompress.model.strip import strip
from tfcompress.quantization.calibration.ranges import calibrate, calibration_batches, first_samples
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.quantize import quantize

_DEFAULT_SIGNATURE = "serving_default"
# Samples that are run through the file when nobody says otherwise.
_VERIFY_SAMPLES = 256


def export_tflite(
    model: keras.Model | Mapping[str, keras.Model],
    path: str | os.PathLike,
    *,
    calibration_data: Any = None,
    verify_data: Any = None,
    min_agreement: float | None = None,
    allow_float: bool = False,
    float_io: bool = False,
    sparse_encoding: bool = False,
    compare_float: bool = False,
    golden_data: Any = None,
    labels: Sequence[str] | None = None,
    preprocessing: Sequence = (),
) -> ExportReport:
    """Writes `model` as a full-int8 `.tflite` and proves that it computes the same.

    The file has batch 1, int8 inputs and outputs, and a signature with the model's own input and
    output names. Beside it go `<name>.json`, which tells an app how to feed it, and
    `<name>.golden.json` with pairs for a test on the phone.

    Args:
        model: A quantized model; a plain float model, which is then quantized by calibration (or,
            with `allow_float=True` and no calibration data, written as it is, in float); or a dict
            of signature key → model, which may share layers.
        path: Where to write; a `.tflite` file in an existing folder.
        calibration_data: As for `quantize`; a dict by signature where `model` is one. Needed for a
            float model and for a quantized one that has no ranges yet; known ranges are kept.
        verify_data: Samples to compare file and model on: one array, a list or dict of arrays for
            several inputs, or batches. By default the calibration data.
        min_agreement: Smallest share of equal output steps, in [0, 1], to accept.
        allow_float: Accept float tensors that the configuration did not ask for.
        float_io: Float inputs and outputs, with QUANTIZE and DEQUANTIZE inside the file.
        sparse_encoding: Leave zero weights out of the file, where LiteRT can run that: in a float
            file, and in int8 the blocks of 16 along the input of dense layers. It makes the file
            itself smaller; where files are compressed anyway, as in an APK, it gains nothing.
            On phones the sparse layers of an int8 file do not run under XNNPACK.
        compare_float: Convert the float model too, so that the report can compare sizes. It
            doubles the time of a conversion.
        golden_data: Samples for the golden pairs; synthetic by default.
        labels: Class names, for the app.
        preprocessing: Steps from raw data to the model's input, for the app.

    Returns:
        The report. Print it.

    Raises:
        ValueError: What LiteRT cannot hold (with the reason), an unwritable path, a model without
            ranges, float tensors left over, zeros that cannot be left out, agreement below
            `min_agreement`. Nothing is written.
        ConversionError: The converter refused the model or crashed.
    """
    path = _checked_path(path)
    models = dict(model) if isinstance(model, Mapping) else {_DEFAULT_SIGNATURE: model}
    if not models:
        raise ValueError("Expected at least one signature. Received: an empty dict.")
    is_single = not isinstance(model, Mapping)
    calibration = {_DEFAULT_SIGNATURE: calibration_data} if is_single else calibration_data or {}
    verify = {_DEFAULT_SIGNATURE: verify_data} if is_single else verify_data or {}
    golden = golden_data if is_single or golden_data is None else dict(golden_data)
    for name, given in (("calibration_data", calibration), ("verify_data", verify)):
        if set(given) - set(models):
            raise ValueError(
                f"Expected `{name}` by the keys of the signatures {list(models)}. Received: "
                f"{list(given)}."
            )

    ready, samples = {}, {}
    for key, given in models.items():
        ready[key] = _ready(given, calibration.get(key), allow_float)
        samples[key] = _samples(ready[key], given, verify.get(key), calibration.get(key))
    names = {key: output_names(m) for key, m in ready.items()}
    lowered = {key: lower(m, names[key]) for key, m in ready.items()}
    if float_io:
        for key, low in lowered.items():
            low.float_inputs = [spec.name for spec in low.specs]
            low.float_outputs = names[key]
    is_quantized = any(low.kernels or not low.float_inputs for low in lowered.values())
    with current_converter() as converter:
        sparse_float = sparse_encoding and not is_quantized
        data = converter.convert(lowered, quantized=is_quantized, sparse=sparse_float)
        # A float file is its own float size; a sparse one is compared with a dense one.
        float_data = None if is_quantized or sparse_float else data
        if sparse_float or (compare_float and is_quantized):
            plain = {key: lower(strip(m), names[key]) for key, m in ready.items()}
            float_data = converter.convert(plain, quantized=False)

    kernels = [kernel for low in lowered.values() for kernel in low.kernels]
    floats = float_kernels(ready.values(), kernels)
    layers = tuple(map(layer_report, (*kernels, *floats)))
    scales = [scale for low in lowered.values() for scale in low.scales]
    patched = patch(data, {key: low.kernels for key, low in lowered.items()}, scales)
    data = patched.data
    dense_bytes = dense_gzip = None
    if any(layer.pruned for layer in layers):
        whole = float_data if sparse_float else data
        dense_bytes, dense_gzip = len(whole), dense_gzip_size(whole)
    sparse_layers: tuple[str, ...] = ()
    if sparse_float:
        sparse_layers = sparse_float_layers(data, floats)
    elif sparse_encoding:
        data, sparse_layers = encode_sparse(data, kernels)
    summary = inspect_tflite(data)
    origins = float_origins(summary, ready, names)
    if not allow_float:
        check_floats(origins, summary, ready, float_io)
    parity = {
        key: tuple(_parity(ready[key], data, key, samples[key], names[key]))
        for key in ready
        if samples[key] is not None
    }
    placed = delegation(data)
    report = ExportReport(
        path=str(path),
        num_bytes=len(data),
        gzip_bytes=gzip_size(data),
        float_num_bytes=None if float_data is None else len(float_data),
        float_gzip_bytes=None if float_data is None else gzip_size(float_data),
        ops=summary.op_counts,
        float_tensors=origins,
        flex_ops=summary.flex_ops,
        num_partitions=placed.num_partitions,
        fully_delegated=placed.is_fully_accelerated,
        ops_outside=placed.ops_outside,
        layers=layers,
        parity=parity,
        patched=patched.patched,
        unverified=patched.missing,
        dense_num_bytes=dense_bytes,
        dense_gzip_bytes=dense_gzip,
        sparse_layers=sparse_layers,
        signature_num_bytes={
            s.key: summary.constant_num_bytes(s.subgraph) for s in summary.signatures
        },
        constant_num_bytes=summary.constant_num_bytes(),
    )
    _check_agreement(report, min_agreement)
    figures = {k: v for k, v in report.to_dict().items() if k not in ("path", "layers")}
    beside = bundle_files(
        data,
        path,
        preprocessing=preprocessing,
        labels=labels,
        report=figures,
        golden_data=_golden(golden, ready, samples),
    )
    write_atomically(path, data)
    write_files(path, beside)
    return report


def _golden(given: Any, models: Mapping, samples: Mapping) -> Any:
    """Samples for the golden pairs: those given; real ones where integers (token numbers, say)
    could not be made up; else `None` for synthetic ones."""
    if given is not None:
        return given
    is_float = all(keras.backend.is_float_dtype(t.dtype) for m in models.values() for t in m.inputs)
    if is_float or any(s is None for s in samples.values()):
        return None
    found = {key: _by_name(models[key], samples[key]) for key in models}
    return found if len(found) > 1 else next(iter(found.values()))


def _by_name(model: keras.Model, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {t.name: a for t, a in zip(model.inputs, arrays, strict=True)}


def _checked_path(path: str | os.PathLike) -> pathlib.Path:
    """Refuses, before minutes of work, a path that could not be written after them."""
    path = pathlib.Path(path)
    folder = path.parent
    if path.suffix != ".tflite" or path.is_dir():
        raise ValueError(f"Expected a file path that ends in .tflite. Received: {str(path)!r}.")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"Expected a path in an existing folder that can be written. Received: {str(path)!r}."
        )
    return path


def output_names(model: keras.Model) -> list[str]:
    """A name for every flat output: the keys of a dict, else the names of the output layers."""
    outputs = output_structure(model)
    if isinstance(outputs, dict):
        # Nested or not, `flatten` goes through a dict in the order of its sorted keys.
        keys = sorted(outputs)
        counts = [len(tree.flatten(outputs[k])) for k in keys]
        if all(count == 1 for count in counts):
            return keys
    graph = Graph.from_model(model)
    names = list(graph.output_names)
    for i, value in enumerate(graph.flat_outputs):
        # A model that was cut out of a quantized one calls its outputs after their quantizers.
        operation = value.node.operation if value.node is not None else None
        if isinstance(operation, FakeQuantize) and names[i] == operation.name:
            names[i] = operation.source or names[i]
    if len(set(names)) != len(names):
        names = [f"{name}_{i}" for i, name in enumerate(names)]
    return names


def _ready(model: keras.Model, calibration_data: Any, allow_float: bool) -> keras.Model:
    """The quantized float32 model with every range known, or the float model that is wanted."""
    quantizers = [o for o in Graph.from_model(model).operations() if isinstance(o, FakeQuantize)]
    if not quantizers:
        if calibration_data is None and allow_float:
            return as_float32(model)
        if calibration_data is None:
            raise ValueError(
                f"Expected a quantized model, or calibration_data to quantize one with. Received: "
                f"the float model {model.name!r} alone. allow_float=True writes a float file."
            )
        return as_float32(quantize(model, calibration_data=calibration_data))
    check_limits(model)
    ready = as_float32(model)
    missing = missing_ranges(ready)
    if missing and calibration_data is not None:
        batches = calibration_batches(ready, calibration_data)
        calibrate(ready, batches, only=missing)
    return ready


def _samples(ready, given, verify_data, calibration_data) -> list[np.ndarray] | None:
    data = verify_data if verify_data is not None else calibration_data
    if data is not None:
        limit = None if verify_data is not None else -(-_VERIFY_SAMPLES // 32)
        return first_samples(calibration_batches(ready, data, limit=limit))
    return getattr(given, "calibration_inputs", None)


def _parity(model, data: bytes, key: str, samples: list[np.ndarray], names: list[str]):
    return measure_parity(model, Runner(data, signature=key), samples, names)


def _check_agreement(report: ExportReport, min_agreement: float | None) -> None:
    if min_agreement is None:
        return
    if report.agreement is None:
        raise ValueError(
            "Expected verify_data or calibration data to measure the agreement that min_agreement "
            f"asks for. Received: min_agreement={min_agreement} and no data."
        )
    if report.agreement < min_agreement:
        worst: list[Parity] = [p for outputs in report.parity.values() for p in outputs]
        raise ValueError(
            f"Expected at least {min_agreement:.2%} equal output steps. Received: "
            f"{report.agreement:.2%} ({worst}). Nothing was written."
        )
