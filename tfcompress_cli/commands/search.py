"""`tfcompress search`: the smallest model that loses no more than is allowed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tfcompress_cli.data import (
    add_data_arguments,
    arrays_of,
    is_other,
    labels_from,
    not_negative,
    positive,
    samples_for,
    split,
)
from tfcompress_cli.output import Output, progress_of

if TYPE_CHECKING:
    from tfcompress.tools.samples import Samples

# What it writes into its folder.
_FILES = (
    *("model.tflite", "model.json", "model.golden.json", "model.keras", "recipe.json"),
    *("table.json", "sensitivity.json", "front.png", "sensitivity.png"),
)

SUMMARY = "search bits, sparsity and channels under a budget, and train the result"
DESCRIPTION = """\
Finds bits, sparsity and channels of every layer of a compiled .keras model, trains the candidates
and measures their files. Give --max-drop, a budget, or both. The last fifth of the training data
(at most 5000 samples) decides; the test data, where there are other ones, only say what was lost.

FOLDER gets model.tflite with its card and golden pairs, model.keras, recipe.json (for `tfcompress
run`), table.json, sensitivity.json and, with matplotlib, plots. A search that was interrupted
continues when it is called again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="a .keras file, trained and compiled")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="of the results")
    parser.add_argument("--max-drop", type=float, metavar="D", help="of the metric")
    parser.add_argument("--max-bytes", type=float, metavar="N", help="of the file")
    parser.add_argument("--max-gzip-bytes", type=float, metavar="N", help="of the file under gzip")
    parser.add_argument(
        "--max-macs", type=float, metavar="M", help="a share up to 1, or a number of products"
    )
    parser.add_argument("--max-milliseconds", type=float, metavar="N", help="of a run here")
    parser.add_argument(
        "--max-memory", type=float, metavar="N", help="bytes of the tensors of a run"
    )
    parser.add_argument(
        "--max-instructions",
        metavar="[CPU=]N",
        help="of a run on cortex-a53, cortex-a76 (default) or i8mm: a share up to 1, or a number",
    )
    parser.add_argument("--metric", help="a Keras metric (default: the compiled one, or accuracy)")
    parser.add_argument(
        "--mode",
        choices=("auto", "min", "max"),
        default="auto",
        help="whether more of the metric is better (default: its class and its name say so)",
    )
    parser.add_argument("--epochs", type=not_negative, default=4, help="of a candidate (default 4)")
    parser.add_argument("--trials", type=positive, default=4, help="candidates (default 4)")
    parser.add_argument("--options", metavar="A,B,...", help="such as int4,channels=0.5")
    parser.add_argument(
        "--packed",
        action="store_true",
        help="pack convolutions of 4 and 2 bits: smaller files that take more time",
    )
    parser.add_argument("--batch-size", type=positive, default=128, help="default 128")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="default 0.001")
    parser.add_argument("--seed", type=not_negative, default=0, help="default 0")
    parser.add_argument("--labels", metavar="FILE", help="class names, one a line, for the card")
    add_data_arguments(parser, required=True)


def run(options: argparse.Namespace) -> Output:
    """Searches, and writes the folder."""
    import dataclasses
    import json

    import tfcompress as tfc
    from tfcompress.files.writing import write_atomically
    from tfcompress.model.loading import load_model, sample_shape
    from tfcompress_cli.output import output_folder, plain

    model = load_model(options.model, compiled=True)
    folder = output_folder(options.out, _FILES)
    shape = sample_shape(model)
    given = samples_for(options, shape, "train")
    _check_labels(given)
    train, validation = map(arrays_of, split(given))
    test = samples_for(options, shape, "test")
    arguments: dict[str, Any] = {}
    if options.options:
        arguments["options"] = [name for name in options.options.split(",") if name]
    result = tfc.search(
        model,
        train,
        validation,
        budget=_budgets(options),
        max_drop=options.max_drop,
        metric=options.metric,
        mode=options.mode,
        epochs=options.epochs,
        trials=options.trials,
        packed=options.packed,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        path=folder / "work",
        verbose=progress_of(options),
        **arguments,
    )
    labels = labels_from(options.labels)
    report = tfc.export_tflite(
        result.model,
        folder / "model.tflite",
        verify_data=validation[0][:256],
        float_model=model,
        labels=labels if labels is not None else given.class_names,
        verbose=progress_of(options),
    )
    result.model.save(folder / "model.keras")
    recipe = dataclasses.replace(
        result.recipe, model=str(options.model), data=str(options.data), name=model.name
    )
    recipe.save(folder / "recipe.json")
    result.sensitivity.save(folder / "sensitivity.json")
    content = plain(
        {
            "baseline": result.baseline,
            "metric": result.metric,
            "best": result.best.to_row(),
            "candidates": result.table,
            "notes": result.notes,
            "report": report.to_dict(),
        }
    )
    text = f"{result}\n"
    if test.y is not None and is_other(test, given):
        scores = {
            name: tfc.evaluate_file(path_or_model, model, (test.x, test.y), metric=options.metric)
            for name, path_or_model in (("float", model), ("file", folder / "model.tflite"))
        }
        content["test"] = scores
        text += (
            f"On {len(test.x):,} test samples: {result.metric} of the float model "
            f"{scores['float']:.4f}, of the file {scores['file']:.4f}.\n"
        )
    write_atomically(folder / "table.json", json.dumps(content, indent=2) + "\n")
    try:
        result.plot(folder / "front.png")
        result.sensitivity.plot(folder / "sensitivity.png")
    except ImportError:
        text += "Plots need matplotlib: pip install tfcompress[reports].\n"
    return Output(f"{text}Written to {folder}.", content)


def _check_labels(given: Samples) -> None:
    if given.y is None or len(given.x) < 10:
        raise ValueError(
            "Expected at least 10 samples with labels in --data. Received: "
            f"{len(given.x)} samples, {'without' if given.y is None else 'with'} labels."
        )


def _budgets(options: argparse.Namespace) -> list:
    import tfcompress as tfc

    found: list = []
    if options.max_bytes is not None:
        found.append(tfc.Bytes(options.max_bytes))
    if options.max_gzip_bytes is not None:
        found.append(tfc.Bytes(options.max_gzip_bytes, gzip=True))
    if options.max_macs is not None:
        found.append(tfc.Macs(options.max_macs))
    if options.max_milliseconds is not None:
        found.append(tfc.Latency(options.max_milliseconds))
    if options.max_memory is not None:
        found.append(tfc.PeakMemory(options.max_memory))
    if options.max_instructions is not None:
        cpu, _, limit = options.max_instructions.rpartition("=")
        try:
            number = float(limit)
        except ValueError:
            raise ValueError(
                "Expected --max-instructions as a number, or a CPU, '=' and a number. Received: "
                f"{options.max_instructions!r}."
            ) from None
        found.append(tfc.Instructions(number, cpu or "cortex-a76"))
    return found
