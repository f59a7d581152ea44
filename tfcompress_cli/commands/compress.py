"""`tfcompress compress`: from a Keras model to a verified int8 `.tflite`."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from tfcompress_cli.data import add_data_arguments, labels_from, positive, samples_for
from tfcompress_cli.output import Output, progress_of

if TYPE_CHECKING:
    from tfcompress.tools.samples import Samples

# Held-out samples that file and model are compared on.
_VERIFIED = 512

SUMMARY = "make a verified int8 .tflite of a Keras model, without training"
DESCRIPTION = """\
Makes a full-int8 .tflite by calibration on data, of a .keras or .h5 file or of a
SavedModel that the legacy Keras (tf_keras, Keras 2) wrote. Runs it beside the model, and
writes FILE.tflite, FILE.json (the card for an app), FILE.golden.json (pairs for a test on
the phone) and FILE.report.json. Where the data have labels, the report gives the accuracy
of the float model, of the int8 model and of the file. Training after quantization, which
gains accuracy, needs Python: see tfcompress.quantize."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "model", metavar="MODEL", help="a .keras or .h5 file or a SavedModel, trained"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE.tflite", help="by default MODEL with the ending .tflite"
    )
    parser.add_argument(
        "--config", default="int8", metavar="PRESET", help="a scheme by name (default int8)"
    )
    parser.add_argument("--labels", metavar="FILE", help="class names, one a line, for the card")
    parser.add_argument(
        "--calibration-samples", type=positive, default=512, metavar="N", help="default 512"
    )
    parser.add_argument(
        "--equalize", action="store_true", help="even out channel ranges between layers"
    )
    for name in ("input", "output"):
        parser.add_argument(
            f"--{name}-type",
            choices=("int8", "uint8"),
            default="int8",
            help=f"type of the codes of {name}s (default int8); MediaPipe reads uint8",
        )
    parser.add_argument("--float-io", action="store_true", help="float inputs and outputs")
    parser.add_argument(
        "--allow-float", action="store_true", help="leave layers without an int8 form in float"
    )
    parser.add_argument(
        "--compare-float", action="store_true", help="convert the float model too, to compare sizes"
    )
    parser.add_argument(
        "--min-agreement",
        type=float,
        metavar="SHARE",
        help="fail below this share of equal outputs",
    )
    add_data_arguments(parser, required=True)


def run(options: argparse.Namespace) -> Output:
    """Quantizes, exports and verifies."""
    import json

    import tfcompress as tfc
    from tfcompress.export.steps.prepare import checked_path
    from tfcompress.files.writing import check_writable, write_atomically
    from tfcompress.model.loading import sample_shape
    from tfcompress_cli.models import trained_model
    from tfcompress_cli.output import plain

    labels = labels_from(options.labels)
    model = trained_model(options.model)
    path = checked_path(options.output or pathlib.Path(options.model).with_suffix(".tflite"))
    report_path = path.with_suffix(".report.json")
    check_writable(report_path)
    shape = sample_shape(model)
    calibration = samples_for(options, shape, "train")
    held_out = samples_for(options, shape, "test")
    is_quantized = isinstance(model, tfc.QuantizedModel)
    quantized = model
    if not is_quantized:
        quantized = tfc.quantize(
            model,
            options.config,
            calibration_data=calibration.x[: options.calibration_samples],
            equalize=options.equalize,
            verbose=progress_of(options),
        )
    report = tfc.export_tflite(
        quantized,
        path,
        verify_data=_verify_data(held_out, len(model.outputs)),
        float_model=None if is_quantized else model,
        min_agreement=options.min_agreement,
        allow_float=options.allow_float,
        float_io=options.float_io,
        input_type=options.input_type,
        output_type=options.output_type,
        compare_float=options.compare_float,
        labels=labels if labels is not None else held_out.class_names,
        verbose=progress_of(options),
    )
    content = plain(report.to_dict())
    write_atomically(report_path, json.dumps(content, indent=2))
    return Output(str(report), content)


def _verify_data(samples: Samples, num_outputs: int) -> Any:
    """Samples to compare on, with labels where there is one output that they can belong to."""
    x = samples.x[:_VERIFIED]
    return x if samples.y is None or num_outputs > 1 else (x, samples.y[:_VERIFIED])
