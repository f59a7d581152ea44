"""The tables of `docs/low-bits.md`, from the rows of `low_bits.csv`."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping

from benchmarks import results_page
from recipes.results import grouped

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "low-bits.md"

#: Part → title, what is said of it, and the columns that it shows: head → (column, digits).
_TABLES: dict[str, tuple[str, str, dict[str, tuple[str, int]]]] = {
    "accuracy": (
        "ResNet-8 on CIFAR-10 (JPEG)",
        "Trained on from one float model of 81.62 %, by Adam with a cosine from 0.001; the first "
        "convolution, the last layer, the input and the logits have 8 bits. `float` is the float "
        "model after the same epochs.",
        {"Keras %": ("keras_accuracy", 2), "file %": ("file_accuracy", 2), "equal %": ("equal", 2)},
    ),
    "mobilenet": (
        "MobileNetV2-0.35 on CIFAR-10 at 64 pixels",
        "Trained on from one float model, as above. Methods against weights that swing between two "
        "levels (Nagel et al. 2022). Rows at commits 9284e5b and 887e044 begin with one float "
        "model, of which the row `float` is; the others with one trained anew (e09d842), which has "
        "68.97 % after the same epoch.",
        {"Keras %": ("keras_accuracy", 2), "file %": ("file_accuracy", 2), "equal %": ("equal", 2)},
    ),
    "mnist": (
        "The dense nets of BNN-PYNQ on MNIST",
        "Three hidden layers of 64 (TFC) and 256 (SFC). BNN-PYNQ publishes 93.17 and 97.81 with 1 "
        "bit, 96.60 and 98.66 with 2. Here W1 are two values per channel, no activation has less "
        "than 2 bits, and the input has 8.",
        {"Keras %": ("keras_accuracy", 2), "file %": ("file_accuracy", 2), "equal %": ("equal", 2)},
    ),
    "files": (
        "Files of dense and pointwise kernels",
        "`time` is that of the file over that of the int8 file, one thread of an x86 CPU. "
        "LeNet-300-100 is trained; the others have random weights. `packed`: "
        "`pointwise_as_dense=True`.",
        {
            "file %": ("file_accuracy", 2),
            "equal %": ("equal", 2),
            "bytes": ("bytes", 0),
            "time": ("ratio", 2),
        },
    ),
    "gradients": (
        "LeNet-5 on MNIST with quantized gradients",
        "`sent`: `QuantizedGradients` before Adam; `back`: `GradientScheme` in an int8 model. The "
        "controls are `float` and `int8`.",
        {"Keras %": ("keras_accuracy", 2)},
    ),
    "steps": (
        "A training step beside that of min-max",
        "CPU time, ResNet-8, 64 images, 4-bit weights where the method has them.",
        {"ratio": ("ratio", 2)},
    ),
}


def tables(rows: Iterable[Mapping[str, str]]) -> str:
    """The tables as Markdown; parts without rows are left out."""
    by_part = grouped(rows, ("part",))
    found = []
    for part, (title, text, columns) in _TABLES.items():
        mine = by_part.get((part,))
        if not mine:
            continue
        found.append(f"### {title}\n\n{text}\n\n{results_page.table(mine, columns)}\n")
    return "\n".join(found)


def write(rows: Iterable[Mapping[str, str]]) -> None:
    """Puts the tables into the page."""
    results_page.put(PAGE, tables(rows))
