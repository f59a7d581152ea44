"""`export_tflite`: from a Keras model to a verified int8 `.tflite` and its report."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfcompress.export.bundle.files import write_files
from tfcompress.export.bundle.metadata import check_number_of_labels
from tfcompress.export.conversion.converter import current_converter
from tfcompress.export.options import BundleOptions, FileOptions, VerifyOptions
from tfcompress.export.report import ExportReport
from tfcompress.export.steps.convert import convert
from tfcompress.export.steps.describe import describe, make_report
from tfcompress.export.steps.metadata import with_labels
from tfcompress.export.steps.prepare import checked_path, prepare
from tfcompress.export.steps.verify import check_agreement, verify
from tfcompress.export.steps.write_exact import write_exact
from tfcompress.model.progress import Progress, Verbosity


def export_tflite(
    model: keras.Model | Mapping[str, keras.Model],
    path: str | os.PathLike,
    *,
    calibration_data: Any = None,
    verify_data: Any = None,
    verify_samples: int | None = None,
    float_model: keras.Model | Mapping[str, keras.Model] | None = None,
    input_shapes: Mapping[str, Any] | None = None,
    min_agreement: float | None = None,
    allow_float: bool = False,
    float_io: bool = False,
    input_type: str = "int8",
    output_type: str = "int8",
    sparse_encoding: bool = False,
    pointwise_as_dense: bool = False,
    weights: str | None = None,
    compare_float: bool = False,
    golden_data: Any = None,
    labels: Sequence[str] | None = None,
    preprocessing: Sequence = (),
    verbose: Verbosity = "auto",
) -> ExportReport:
    """Writes `model` as a full-int8 `.tflite` and measures that it computes the same.

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
            several inputs, or batches. By default the calibration data; where there is none,
            synthetic inputs drawn from the ranges of the input quantizers (token numbers from the
            `Embedding` that reads them). The report says which. `(x, y)`, or batches of both, has
            labels: class numbers, one-hot rows or targets; of several outputs a dict of them by
            output. The report then says what compression cost: metrics of the float model (where it
            is known), of `model` and of the file.
        verify_samples: Most samples to compare on; by default all of `verify_data`, else 256, and
            64 for large models. 0 compares nothing.
        float_model: The model that `quantize` was called on (a dict by signature where `model` is
            one), to compare the file with on the same samples. By default the report compares with
            what `quantize` stored of it: its outputs on 128 of the calibration samples; metrics
            (`verify_data=(x, y)`) are those of the model itself, while it is there and unchanged. A
            model that was loaded from a file has nothing stored.
        input_shapes: For a model with inputs of unknown sizes, such as `keras.Input((None, 16))`:
            signature key → the shape of the input without the batch axis, `{"short": (64, 16)}`,
            or a dict of input name → shape. The file has one signature for each, with weights
            stored once; `verify_data` is then a dict by these keys.
        min_agreement: Smallest share of equal output steps, in [0, 1], to accept. Without it a
            share below 0.99 is a warning.
        allow_float: Accept float tensors that the configuration did not ask for.
        float_io: Float inputs and outputs, with QUANTIZE and DEQUANTIZE inside the file.
        input_type: `"uint8"` for inputs of uint8 codes, 128 more than those of int8, which the file
            takes off again. So an app feeds pixels of 0 to 255 as they are, where the model begins
            with a `Rescaling` of such pixels, which is then no operator of the file.
        output_type: `"uint8"` for outputs of uint8 codes, 128 more than those of int8. MediaPipe
            reads no int8.
        sparse_encoding: Leave zero weights out of the file, where LiteRT can run that: in a float
            file, and in int8 the blocks of 16 along the input of dense layers. It makes the file
            itself smaller; where files are compressed anyway, as in an APK, it gains nothing.
            On phones the sparse layers of an int8 file do not run under XNNPACK.
        pointwise_as_dense: Store the kernels of pointwise convolutions in 4 or 2 bits, where they
            have so few: such a convolution is then a FULLY_CONNECTED in the file, and computes the
            same codes. XNNPACK runs no convolution with such kernels. What it costs in time depends
            on CPU and shape, from a tenth less than int8 to several times as much: measure it with
            `compare_latency`. Convolutions with strides, and those with an odd number of input
            channels, stay in int8.
        weights: A float file instead, for a float model: `"float16"` stores weights in half the
            bytes, and XNNPACK computes in float32; `"dynamic"` stores large kernels in int8, and
            the runtime rounds activations to int8 by the range of each call. Nothing is trained for
            that: calibration data is only what file and model are compared on.
        compare_float: Convert the float model too, so that the report can compare sizes. It
            doubles the time of a conversion. It is `float_model` where that is given, else the
            model without its quantizers, whose rounded weights gzip to less.
        golden_data: Samples for the golden pairs; synthetic by default.
        labels: Class names, for the app. They are also in the file itself, with TFLite metadata in
            the schema that MediaPipe Tasks reads, where it has one signature.
        preprocessing: Steps from raw data to the model's input, for the app: a list of dicts with
            an `op`, such as `{"op": "resize", "height": 96, "width": 96}` and `{"op": "rescale",
            "scale": 1 / 255}` (all are in `tfcompress.export.bundle.preprocessing`).
        verbose: 0 shows no progress, 1 prints lines where there is no terminal to show a bar in.

    Returns:
        The report. Print it.

    Raises:
        ValueError: What LiteRT cannot hold (with the reason), an unwritable path, a model without
            ranges, float tensors left over, zeros that cannot be left out, agreement below
            `min_agreement`, a `float_model` with other outputs; no folder for temporary files
            (`TMPDIR`), a name that is too long. Nothing is written.
        ConversionError: The converter refused the model or crashed, LiteRT crashes when it loads
            the file, or the temporary folder is full. Nothing is written.
        OSError: The disk is full. The files of an earlier export are as they were.

    Warns:
        UserWarning: Fewer than 90 % of the output steps are equal and no `min_agreement` is given.
    """
    path = checked_path(path)
    file_options = FileOptions(
        allow_float or weights is not None,
        float_io,
        sparse_encoding,
        compare_float,
        weights,
        pointwise_as_dense,
        input_type,
        output_type,
    )
    verify_options = VerifyOptions(min_agreement, verify_samples)
    bundle = BundleOptions(golden_data, labels, preprocessing)
    with Progress("export_tflite", 5, verbose) as progress:
        progress.stage("prepare")
        signatures = prepare(
            model,
            calibration_data,
            verify_data,
            input_shapes,
            float_model=float_model,
            allow_float=allow_float,
            weights=weights,
            verify=verify_options,
        )
        if labels is not None:
            outputs = {
                f"{s.key}/{name}": tensor.shape
                for s in signatures
                for name, tensor in zip(s.output_names, s.model.outputs, strict=True)
            }
            check_number_of_labels(labels, outputs)
        with current_converter() as converter:
            progress.stage("convert")
            converted = convert(signatures, converter, file_options)
            progress.stage("write exact values")
            written = write_exact(signatures, converted, file_options)
            data, notes = with_labels(written.data, path.stem, signatures, bundle)
            written = dataclasses.replace(written, data=data, notes=notes)
            # Its float file and the constants of its functions are several times the model.
            converted = dataclasses.replace(converted, data=b"", lowered={})
            progress.stage("run the file beside the model")
            verified = verify(signatures, written.data, converter, file_options)
        if weights != "dynamic" or min_agreement is not None:
            # The runtime's own rounding of activations is in no Keras model.
            check_agreement(verified.parity, verify_options)
        progress.stage("describe")
        report = make_report(path, signatures, converted, written, verified)
        beside = describe(path, signatures, verified, report, bundle)
        write_files(path, beside, written.data)
    return report
