"""`explain_difference`: which classes, examples and regions compression has changed."""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import os
import pathlib
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from tfcompress.analysis.comparison import svg
from tfcompress.analysis.comparison.html import page, save_page
from tfcompress.analysis.comparison.maps import (
    MapAgreement,
    agreement_of_maps,
    input_gradients,
    occlusion,
)
from tfcompress.analysis.comparison.samples import sample_arrays
from tfcompress.analysis.comparison.subjects import ModelOrFile, Subject, subject
from tfcompress.export.conversion.converter import shared_converter
from tfcompress.export.runtime.metrics import class_probabilities
from tfcompress.tables import Printable, html_of, render_table

# Pictures whose maps are compared.
_MAPS = 8


@dataclasses.dataclass(frozen=True)
class ClassChange:
    """One class before and after compression.

    Attributes:
        name: Of the class.
        samples: How many samples are of it.
        recall_before: Share of them that the reference recognizes.
        recall_after: Share that the compressed model recognizes.
        lost: How many only the reference recognizes.
        gained: How many only the compressed model recognizes.
        p_value: Of McNemar's exact test, that `lost` and `gained` differ by chance.
    """

    name: str
    samples: int
    recall_before: float
    recall_after: float
    lost: int
    gained: int
    p_value: float


@dataclasses.dataclass(frozen=True)
class ChangedExample:
    """One sample that the models see differently.

    Attributes:
        index: Its number in the data.
        before: Class by the reference.
        after: Class by the compressed model.
        label: True class; `None` without labels.
        divergence: Σ p · log(p / q) of the reference's probabilities p and the other's q, in nats.
    """

    index: int
    before: str
    after: str
    label: str | None
    divergence: float


@dataclasses.dataclass(frozen=True)
class DifferenceReport(Printable):
    """What `explain_difference` found. Print it, or `save_html` it with the pictures.

    Attributes:
        samples: How many samples were run.
        changed: How many get another class.
        classes: Every class that occurs; empty without labels.
        examples: Samples with another class, then the others, most changed first.
        maps: Agreement of occlusion maps: how much the probability of the reference's class falls
            where a square of the picture is covered. `None` where the input is no picture.
        gradients: Agreement of the sizes of the gradient by each pixel, of Keras models alone.
        pictures: Number of a sample → the picture, for those of `examples`.
    """

    samples: int
    changed: int
    classes: tuple[ClassChange, ...]
    examples: tuple[ChangedExample, ...]
    maps: MapAgreement | None
    gradients: MapAgreement | None = None
    pictures: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, without the pictures."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields.pop("pictures")
        fields["classes"] = [dataclasses.asdict(c) for c in self.classes]
        fields["examples"] = [dataclasses.asdict(e) for e in self.examples]
        for name in ("maps", "gradients"):
            fields[name] = None if fields[name] is None else dataclasses.asdict(fields[name])
        return fields

    def save_html(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes one page with tables, plots and the pictures most changed."""
        rows = [(c.name, [c.recall_before, c.recall_after]) for c in self.classes]
        recalls = svg.bars(rows[:30], ["before", "after"], "recall", highest=1.0) if rows else ""
        figures = "".join(
            f'<figure><img src="{_png(self.pictures[e.index])}" alt="sample {e.index}">'
            f"<figcaption>{html.escape(_caption(e))}</figcaption></figure>"
            for e in self.examples
            if e.index in self.pictures
        )
        gallery = f'<div class="gallery">{figures}</div>' if figures else ""
        sections = [("", html_of(self)), ("Recall by class", recalls), ("Most changed", gallery)]
        return save_page(path, page("What compression changed", sections))

    def __str__(self) -> str:
        text = f"{self.changed} of {self.samples} samples get another class.\n\n"
        if self.classes:
            rows = [
                (
                    *(c.name, c.samples, f"{c.recall_before:.2%}", f"{c.recall_after:.2%}"),
                    *(c.lost, c.gained, f"{c.p_value:.3f}"),
                )
                for c in self.classes
            ]
            columns = ("class", "samples", "recall before", "after", "lost", "gained", "p")
            text += render_table("Classes, most changed first", columns, rows)
        found = [
            (e.index, e.before, e.after, e.label or "", f"{e.divergence:.4f}")
            for e in self.examples
        ]
        heads = ("sample", "before", "after", "label", "divergence in nats")
        text += render_table("Samples most changed", heads, found)
        for how, found_maps in (("occlusion", self.maps), ("input gradients", self.gradients)):
            if found_maps is not None:
                text += (
                    f"Regions that decide ({how}, {found_maps.samples} samples): rank correlation "
                    f"{found_maps.rank_correlation:.3f}, overlap of the top 10 % "
                    f"{found_maps.top_overlap:.1%}.\n"
                )
        return text


def explain_difference(
    reference: ModelOrFile,
    compressed: ModelOrFile,
    data: Any,
    *,
    class_names: Sequence[str] | None = None,
    output: str | None = None,
    most_examples: int = 16,
    maps: bool = True,
) -> DifferenceReport:
    """Says what compression changed: classes, samples, and regions of pictures.

    A compressed model may keep its accuracy and still lose some classes and rare examples (Hooker
    et al. 2019, https://arxiv.org/abs/1911.05248).

    Args:
        reference: The classifier before: a Keras model or the path of a file, as for `compare`.
        compressed: The classifier after.
        data: `(x, y)` with class numbers or one-hot rows, or `x` alone.
        class_names: Class number → name.
        output: Name of the output, for models with several.
        most_examples: How many samples to list.
        maps: Whether to compare the regions that decide, where the input is a picture.

    Returns:
        The report. Print it, or `save_html` it.

    Raises:
        TypeError: What is neither model nor file.
        ValueError: Models without class outputs; data that do not fit.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> int8 = tfc.quantize(model, calibration_data=x)
        >>> tfc.explain_difference(model, int8, (x, np.arange(64) % 3)).samples
        64
    """
    with shared_converter():
        before, after = subject("reference", reference), subject("compressed", compressed)
    x, labels = sample_arrays(data, len(before.input_names), output)
    inputs = before.line_up(x)

    def run(model: Subject, arrays: list[np.ndarray]) -> np.ndarray:
        outputs = model.run(model.line_up(arrays if len(arrays) > 1 else arrays[0]))
        name = next(iter(outputs)) if len(outputs) == 1 else output
        if name is None or name not in outputs:
            raise ValueError(
                f"Expected the name of an output: {list(outputs)}. Received: {output=}"
            )
        return _probabilities(np.asarray(outputs[name]))

    p, q = run(before, inputs), run(after, inputs)
    if p.shape != q.shape:
        raise ValueError(
            f"Expected models of the same classes. Received: outputs of shape {p.shape[1:]} and "
            f"{q.shape[1:]}"
        )
    names = list(map(str, range(p.shape[1]))) if class_names is None else list(class_names)
    if len(names) != p.shape[1]:
        raise ValueError(f"Expected {p.shape[1]} class_names. Received: {len(names)}")
    old, new = p.argmax(-1), q.argmax(-1)
    divergence = np.sum(p * (np.log(p + 1e-12) - np.log(q + 1e-12)), -1)
    order = np.lexsort((-divergence, old == new))[:most_examples]
    truth = None if labels is None else _class_numbers(labels, p.shape)
    examples = tuple(
        ChangedExample(int(i), names[old[i]], names[new[i]],
                       None if truth is None else names[truth[i]], float(divergence[i]))
        for i in order
    )  # fmt: skip
    is_picture = len(inputs) == 1 and inputs[0].ndim == 4 and inputs[0].shape[-1] in (1, 3)
    shown = order[:_MAPS]
    with_maps = maps and is_picture
    return DifferenceReport(
        len(p),
        int(np.sum(old != new)),
        () if truth is None else _classes(truth, old, new, names),
        examples,
        _occlusion(run, before, after, inputs[0][shown], old[shown]) if with_maps else None,
        _gradients(before, after, inputs[0][shown], old[shown], output) if with_maps else None,
        {int(i): inputs[0][i] for i in order} if is_picture else {},
    )


def _occlusion(
    run: Callable[[Subject, list[np.ndarray]], np.ndarray],
    before: Subject,
    after: Subject,
    pictures: np.ndarray,
    classes: np.ndarray,
) -> MapAgreement:
    """Agreement in what falls where a square is covered, of the reference's classes."""
    found: list[list[np.ndarray]] = []
    for model in (before, after):
        probabilities = functools.partial(_run_one, run, model)
        pairs = zip(pictures, classes, strict=True)
        found.append([occlusion(probabilities, picture)[:, own] for picture, own in pairs])
    return agreement_of_maps(*found)


def _run_one(
    run: Callable[[Subject, list[np.ndarray]], np.ndarray], model: Subject, pictures: np.ndarray
) -> np.ndarray:
    return run(model, [pictures])


def _gradients(
    before: Subject, after: Subject, pictures: np.ndarray, classes: np.ndarray, output: str | None
) -> MapAgreement | None:
    """Agreement of gradients, where both are Keras models and pixels are numbers."""
    found: list[list[np.ndarray]] = []
    for each in (before, after):
        if each.model is None or pictures.dtype.kind != "f":
            return None
        position = each.output_names.index(output) if output in each.output_names else 0
        found.append(list(input_gradients(each.model, pictures, classes, position)))
    return agreement_of_maps(*found)


def _class_numbers(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Class numbers of labels, which may be one-hot rows."""
    labels = np.asarray(labels)
    if labels.shape == shape and shape[1] > 1:
        labels = labels.argmax(-1)
    numbers = labels.reshape(len(labels), -1)
    is_whole = bool(np.all(numbers == np.floor(numbers)))
    if numbers.shape[1] != 1 or not is_whole or numbers.min() < 0 or numbers.max() >= shape[1]:
        raise ValueError(
            f"Expected labels as class numbers from 0 to {shape[1] - 1}. Received: {labels.dtype} "
            f"of shape {labels.shape} from {labels.min():g} to {labels.max():g}. For a regression "
            "see tfc.compare"
        )
    return numbers[:, 0].astype(int)


def _probabilities(outputs: np.ndarray) -> np.ndarray:
    if outputs.ndim != 2:
        raise ValueError(
            "Expected classifiers, with an output of shape (batch, classes). Received: "
            f"{outputs.shape}. Name another output"
        )
    return class_probabilities(outputs, "binary" if outputs.shape[1] == 1 else "classification")


def _classes(
    truth: np.ndarray, old: np.ndarray, new: np.ndarray, names: Sequence[str]
) -> tuple[ClassChange, ...]:
    found = []
    for number in np.unique(truth):
        own = truth == number
        before, after = old[own] == number, new[own] == number
        lost, gained = int(np.sum(before & ~after)), int(np.sum(after & ~before))
        p = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
        found.append(
            ClassChange(
                *(names[number], int(own.sum()), float(before.mean()), float(after.mean())),
                *(lost, gained, float(p)),
            )
        )
    return tuple(sorted(found, key=lambda c: -abs(c.recall_after - c.recall_before)))


def _caption(example: ChangedExample) -> str:
    label = "" if example.label is None else f" (is {example.label})"
    return f"{example.index}: {example.before} → {example.after}{label}"


def _png(picture: np.ndarray) -> str:
    """A picture as a `data:` address; its values are stretched to 0..255."""
    low, high = float(picture.min()), float(picture.max())
    pixels = np.rint((picture - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)
    height, width, channels = pixels.shape
    # Each row begins with the number of its filter, 0 for none.
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()
