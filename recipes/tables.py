"""Writes the tables of the documentation from the rows in `recipes/results/`.

    python -m recipes.tables

A page has a pair of comments where a table belongs, `<!-- table: NAME -->` and
`<!-- table end -->`; what stands between them is written anew. `TABLES` says of each name which
rows of which file it shows, and how. Every line ends with the commits that its rows were measured
at.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

from absl import app

from recipes.table_kinds import Digits, Pivot, Table

ROOT = pathlib.Path(__file__).parents[1]
_MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- table end -->)", re.DOTALL)


def _quantize(dataset: str, extra: str) -> Table:
    names = {
        "float": "float",
        "float_control": f"float, {extra} more",
        "int8_calibration": "int8 by calibration",
        "int8_training": f"int8 by training, {extra}",
    }
    shown: dict[str, tuple[str, Digits]] = {
        "Keras %": ("keras_accuracy", 2),
        "LiteRT %": ("tflite_accuracy", 2),
        "equal steps %": ("equal_steps", 2),
        "bytes": ("num_bytes", None),
        "gzip": ("gzip_bytes", None),
    }
    return Table("quantize", {"variant": "variant"}, shown, {"dataset": [dataset]}, names)


_PEERS = {
    "float": "float",
    "ours_training": "tfcompress, trained",
    "tfmot_training": "tfmot, trained",
    "ours_calibration": "tfcompress, calibrated",
    "stock_int8": "TensorFlow's converter, full int8",
    "ai_edge_static": "ai-edge-quantizer, static",
    "stock_dynamic": "TensorFlow's converter, dynamic range",
    "ai_edge_dynamic": "ai-edge-quantizer, dynamic",
}


def _peers(task: str) -> Table:
    shown: dict[str, tuple[str, Digits]] = {
        "model %": ("model_accuracy", 2),
        "file %": ("file_accuracy", 2),
        "same top-1 %": ("same_top1", 2),
        "equal %": ("equal", 2),
        "largest": ("largest", None),
        "bytes": ("num_bytes", None),
        "gzip": ("gzip_bytes", None),
        "step": ("step_ratio", 2),
        "time here": ("latency_ratio", 2),
        "Cortex-A53": ("instructions_cortex-a53", None),
        "Cortex-A76": ("instructions_cortex-a76", None),
    }
    return Table("peers", {"method": "method"}, shown, {"task": [task]}, _PEERS)


_WIDTHS = {
    "dense": "dense",
    "shrunk": "shrunk, then 8 epochs",
    "scratch": "the same small network from scratch, 8 epochs",
    "uniform_scratch": "every layer narrowed alike, from scratch, 8 epochs",
    "scratch_long": "the same small network from scratch, 38 epochs",
}
_STUDENTS = {
    "plain": "labels alone",
    "logits, T=2": "logits, T = 2",
    "logits, T=4": "logits, T = 4",
    "logits, T=10": "logits, T = 10",
}
_ACCURACY: Mapping[str, tuple[str, Digits]] = {"accuracy %": ("accuracy", 2)}

TABLES: dict[str, Table | Pivot] = {
    "peers-mnist": _peers("mnist"),
    "peers-cifar10": _peers("cifar10"),
    "peers-versions": Table(
        "peers",
        {"method": "method"},
        {"versions": ("versions", "raw")},
        names=_PEERS,
        seeds=False,
    ),
    "quantize-cifar10": _quantize("cifar10", "2 epochs"),
    "quantize-mnist": _quantize("mnist", "1 epoch"),
    "quantize-fashion": _quantize("fashion_mnist", "1 epoch"),
    "calibration": Table(
        "calibration",
        {"network": "model", "options": "options"},
        {
            "float %": ("float_accuracy", 2),
            "LiteRT %": ("accuracy", 2),
            "same top-1 %": ("same_top1", 2),
            "SNR dB": ("snr_db", 1),
            "CPU s": ("cpu_seconds", 1),
        },
        names={
            "resnet8": "ResNet-8",
            "mobilenet_v1": "MobileNetV1-0.25",
            "mobilenet_v2": "MobileNetV2-0.35",
        },
        seeds=False,
    ),
    "calibrate": Pivot(
        "calibrate",
        ("weights", "scheme"),
        "option",
        {
            "neither": "neither",
            "bias correction": "bias correction",
            "equalization": "equalization",
            "both": "both",
        },
        "tflite_accuracy",
    ),
    "prune-lenet": Pivot(
        "prune",
        ("network", "model"),
        "sparsity",
        {"0.0": "dense", "0.917": "91.7 %", "0.92": "92 %", "0.98": "98 %"},
        "error",
        where={"experiment": ["lenet300", "lenet5"]},
    ),
    "prune-sweep": Pivot(
        "prune",
        ("method", "method"),
        "sparsity",
        {"0.0": "0 %", "0.8": "80 %", "0.9": "90 %", "0.95": "95 %", "0.98": "98 %"},
        "error",
        where={"experiment": ["sweep"]},
    ),
    "prune-resnet8": Pivot(
        "prune",
        ("method", "method"),
        "sparsity",
        {"0.0": "0 %", "0.5": "50 %", "0.8": "80 %"},
        "error",
        where={"experiment": ["resnet8"]},
    ),
    "prune-guided": Table(
        "prune",
        {"allowed drop": "method"},
        {"zeros %": ("reached", 2), "drop, points": ("drop", 2), "error %": ("error", 2)},
        {"experiment": ["guided"]},
        percent=("reached", "drop"),
    ),
    "prune-int8": Table(
        "prune_int8",
        {"variant": "variant"},
        {
            "error %": ("litert_error", 2),
            "lost zeros": ("lost", None),
            "rounded to zero besides": ("rounded_to_zero", None),
            "gzip": ("gzip_bytes", None),
        },
        names={
            "pruned": "pruned, float",
            "pruned, then int8": "pruned, then int8",
            "in one fit": "both in one fit",
        },
    ),
    "shrink-resnet8": Table(
        "shrink",
        {"variant": "variant"},
        {"MACs": ("macs", None), "parameters": ("parameters", None), **_ACCURACY},
        {"experiment": ["resnet8"]},
        _WIDTHS,
    ),
    "shrink-criteria": Pivot(
        "shrink",
        ("criterion", "variant"),
        "target",
        {"1.0": "all", "0.5": "MACs / 2", "0.25": "MACs / 4", "0.125": "MACs / 8"},
        "accuracy",
        where={"experiment": ["criteria"]},
    ),
    "shrink-slimming": Table(
        "shrink",
        {"variant": "variant"},
        {"MACs left": ("macs_left", 3), "parameters": ("parameters", None), **_ACCURACY},
        {"experiment": ["slimming"]},
    ),
    "shrink-applications": Table(
        "shrink_applications",
        {"family, pixels": "family"},
        {
            "groups": ("groups", "raw"),
            "MACs left": ("macs", 3),
            "parameters left": ("parameters", 3),
            "difference": ("oracle", "raw"),
            "int8 file": ("int8", "raw"),
        },
        seeds=False,
    ),
    "deep-compression": Table(
        "deep_compression",
        {"network": "network", "stage": "stage", "zeros": "sparsity", "values": "clusters"},
        {
            "error %": ("error", 2),
            "fixed": ("fixed_bytes", None),
            "Huffman": ("huffman_bytes", None),
            "best": ("packed_bytes", None),
            "float": ("float_bytes", None),
        },
        names={"lenet300": "LeNet-300-100", "lenet5": "LeNet-5"},
    ),
    "cluster": Table(
        "cluster",
        {"variant": "variant"},
        {
            "LiteRT %": ("accuracy", 2),
            "codes": ("codes", None),
            "bytes": ("num_bytes", None),
            "gzip": ("gzip_bytes", None),
        },
        names={
            "float": "float",
            "int8": "int8",
            "int8, 32": "int8, 32 values",
            "int8, 16": "int8, 16 values",
            "tfmot, 32": "tfmot, 32 values, then int8",
            "tfmot, 16": "tfmot, 16 values, then int8",
        },
    ),
    "share": Table(
        "share",
        {"seed": "seed"},
        {
            "Fashion-MNIST alone %": ("fashion_mnist_alone", 2),
            "Fashion-MNIST tied %": ("fashion_mnist_shared", 2),
            "MNIST alone %": ("mnist_alone", 2),
            "MNIST tied %": ("mnist_shared", 2),
            "two files": ("sum_bytes", None),
            "one file": ("one_bytes", None),
        },
        seeds=False,
    ),
    "factorize": Table(
        "factorize",
        {"variant": "variant"},
        {
            "MACs": ("macs", None),
            "parameters": ("parameters", None),
            "before %": ("before", 2),
            "after %": ("after", 2),
        },
    ),
    "distill-mnist": Table(
        "distill",
        {"student": "variant"},
        {"errors of 10,000": ("test_errors", 1)},
        {"experiment": ["mnist"]},
    ),
    "distill-three": Table(
        "distill",
        {"student": "variant"},
        {"errors of 10,000": ("test_errors", 0), "on 1,010 threes": ("errors_on_threes", 0)},
        {"experiment": ["never_saw_a_3"]},
    ),
    "distill-fashion": Table(
        "distill",
        {"student of 17,914 weights": "variant"},
        {"accuracy %": ("test_accuracy", 2)},
        {"experiment": ["fashion"]},
        _STUDENTS,
    ),
    "distill-lowbit": Table(
        "distill",
        {"images": "train_samples", "student": "variant", "epochs": "epochs"},
        {"Keras %": ("test_accuracy", 2), "LiteRT %": ("litert_accuracy", 2)},
        {"experiment": ["lowbit", "lowbit_few"]},
    ),
    "compose": Table(
        "compose",
        {"run": "variant"},
        {
            "Keras %": ("keras", 2),
            "LiteRT %": ("litert", 2),
            "zeros %": ("zeros", 1),
            "lost zeros": ("lost_zeros", None),
            "codes": ("codes", None),
            "equal steps %": ("equal", 2),
            "gzip": ("gzip_bytes", None),
        },
    ),
    "gradient-traffic": Table(
        "gradient_traffic",
        {"gradients": "row", "workers": "workers", "steps": "steps"},
        {
            "bytes on the network, a step": ("network", None),
            "loss": ("loss", 4),
            "accuracy %": ("accuracy", 2),
        },
    ),
    "damaged-files": Table(
        "fuzz",
        {"file": "file", "reader": "reader", "damage": "damage"},
        {
            "right": ("right", None),
            "other": ("other", None),
            "clean error": ("clean", None),
            "failed": ("failed", None),
            "slowest, s": ("seconds", "raw"),
            "more memory, MB": ("megabytes", "raw"),
        },
        seeds=False,
    ),
}


def filled(text: str) -> str:
    """A page with its tables written anew."""
    return _MARKED.sub(lambda m: f"{m[1]}\n{TABLES[m[2]].markdown()}\n\n{m[3]}", text)


def pages() -> list[pathlib.Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected no arguments. Received: {argv[1:]}")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"Written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    app.run(main)
