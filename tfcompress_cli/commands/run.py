"""`tfcompress run`: follows a recipe."""

from __future__ import annotations

import argparse
from typing import Any

from tfcompress_cli.data import (
    add_data_arguments,
    arrays_of,
    is_other,
    labels_from,
    samples_for,
    split,
)
from tfcompress_cli.output import Output, progress_of

# What it writes into its folder.
_FILES = (
    *("model.tflite", "model.json", "model.golden.json", "model.keras", "recipe.json"),
    "report.json",
)

SUMMARY = "follow a recipe, and measure the file that it gives"
DESCRIPTION = """\
Follows a recipe in JSON or YAML, such as `tfcompress search` writes: compresses and trains the
model, exports it, and measures the file on the test data, or where there are no other ones than
the training data, on a fifth of these (at most 5000 samples) that is held back. MODEL and DATA are
those of the recipe unless they are given. A recipe that search wrote is followed on the same part
of the training data as the search."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("recipe", metavar="RECIPE", help="a .json, .yaml or .yml file")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="of the results")
    parser.add_argument("--model", metavar="MODEL", help="a .keras file; default the recipe's")
    parser.add_argument("--labels", metavar="FILE", help="class names, one a line, for the card")
    add_data_arguments(parser, required=False)


def run(options: argparse.Namespace) -> Output:
    """Follows the recipe, and writes the folder."""
    import dataclasses
    import json

    import tfcompress as tfc
    from tfcompress.files.writing import write_atomically
    from tfcompress.model.loading import load_model, sample_shape
    from tfcompress_cli.output import output_folder, plain

    recipe = tfc.Recipe.load(options.recipe)
    kinds = [kind for stage in recipe.stages for kind in stage]
    if "quantize" not in kinds:
        raise ValueError(
            "Expected a recipe with a stage 'quantize', for the int8 file that this command "
            f"writes. Received: the stages {kinds}. A float model comes from Recipe.run in Python."
        )
    path, options.data = options.model or recipe.model, options.data or recipe.data
    if not path or not options.data:
        raise ValueError(
            "Expected a model and data, in the recipe or as --model and --data. Received: "
            f"model={path!r}, data={options.data!r}."
        )
    model = load_model(path, compiled=True)
    folder = output_folder(options.out, _FILES)
    shape = sample_shape(model)
    given, test = (samples_for(options, shape, part) for part in ("train", "test"))
    train, validation = split(given)
    has_test = test.y is not None and is_other(test, given)
    kind, held = ("test", test) if has_test else ("validation", validation)

    def score(which: Any) -> float:
        return tfc.evaluate_file(which, model, arrays_of(held), metric=recipe.metric or None)

    # A wrong metric or wrong labels are an error before the training, not behind it.
    scores = {} if held.y is None else {"float": score(model)}
    compressed = recipe.run(model, arrays_of(train), verbose=2 if options.verbose else 0)
    report = tfc.export_tflite(
        compressed,
        folder / "model.tflite",
        verify_data=validation.x[:256],
        float_model=model,
        labels=labels_from(options.labels),
        verbose=progress_of(options),
    )
    compressed.save(folder / "model.keras")
    dataclasses.replace(recipe, model=str(path), data=str(options.data)).save(
        folder / "recipe.json"
    )
    content = {"report": plain(report.to_dict())}
    text = str(report)
    if scores:
        scores["file"] = score(folder / "model.tflite")
        content[kind] = scores
        text += (
            f"On {len(held.x):,} {kind} samples: {recipe.metric or 'the metric'} of the float "
            f"model {scores['float']:.4f}, of the file {scores['file']:.4f}.\n"
        )
    write_atomically(folder / "report.json", json.dumps(content, indent=2) + "\n")
    return Output(f"{text}Written to {folder}.", content)
