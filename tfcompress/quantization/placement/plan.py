"""The plan: what each layer of a model will get, and why, as something to print."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.placement.advice import instead_of
from tfcompress.quantization.schemes import ActivationScheme, WeightScheme
from tfcompress.tables import Printable, render_table

#: What is said of products of two tensors whose scales are powers of two.
TIED_PRODUCT = (
    "products that lie exactly between two codes, as power-of-two scales give, are rounded up by "
    "XNNPACK on ARM and to even on x86"
)
#: What is said of a model with 16-bit activations.
INT16_NOTE = (
    "16-bit activations run in LiteRT's own kernels, outside XNNPACK: ResNet-8 takes 25 times "
    "as long as in int8 (x86, one thread)"
)
#: The reason of a layer whose scheme is `None`.
AS_CONFIGURED = "the configuration says so"


@dataclasses.dataclass(frozen=True)
class PlanEntry:
    """What one layer of the given model gets.

    Attributes:
        name: Its name; inside a nested model, below that model's name.
        type: Its class.
        parts: Names of what it becomes in the quantized model, in running order.
        weights: What its kernels get, empty where it has none.
        activations: What happens to the tensor that it produces.
        float_reason: Why it is left in float; empty where it is not.
        limits: What LiteRT will not be able to hold.
        notes: What may differ between platforms, and why a Rescaling at the input is an operator.
        is_float: Whether it computes on floating point values in the file.
        outside: Names of LiteRT's int8 operators of it that are known not to run under XNNPACK;
            `tfcompress.lint` looks at the file.
        stored: The types that hold its kernels in the file; empty where it has none.
    """

    name: str
    type: str
    parts: tuple[str, ...]
    weights: str = ""
    activations: str = ""
    float_reason: str = ""
    limits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_float: bool = False
    outside: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan(Printable):
    """A plan, printable. Iterating gives its entries.

    Attributes:
        model: Name of the model.
        entries: One entry per layer of the given model, in the order of its calls.
        notes: What is to be known of the whole model.
    """

    model: str
    entries: tuple[PlanEntry, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[PlanEntry]:
        return iter(self.entries)

    @property
    def float_layers(self) -> dict[str, str]:
        """Name → reason, of the layers that are left in float."""
        return {e.name: e.float_reason for e in self.entries if e.float_reason}

    @property
    def refused_floats(self) -> dict[str, str]:
        """Name → reason, of the layers in float for which a strict export refuses the model."""
        floats = [e for e in self.entries if e.is_float and e.float_reason]
        return {e.name: e.float_reason for e in floats if e.float_reason != AS_CONFIGURED}

    @property
    def requested_floats(self) -> list[str]:
        """The layers, in the quantized model, that the configuration leaves in float."""
        return [part for e in self.entries if e.float_reason == AS_CONFIGURED for part in e.parts]

    @property
    def limits(self) -> dict[str, tuple[str, ...]]:
        """Name → what LiteRT cannot hold of it. Such a model trains; export refuses it."""
        return {e.name: e.limits for e in self.entries if e.limits}

    def __str__(self) -> str:
        rows = []
        # Kernels of 8 bits are held in int8, which needs no column.
        shows_types = any(e.stored and "int8" not in e.weights for e in self.entries)
        for entry in self.entries:
            parts = "" if entry.parts == (entry.name,) else ", ".join(entry.parts)
            note = f"float: {entry.float_reason}" if entry.float_reason else entry.activations
            stored = (", ".join(dict.fromkeys(entry.stored)),) if shows_types else ()
            rows.append((entry.name, entry.type, parts, entry.weights, *stored, note))
        types = ("in the file",) if shows_types else ()
        columns = ("layer", "type", "becomes", "weights", *types, "activations")
        text = render_table(f"Quantization plan of {self.model}", columns, rows)
        for name, limits in self.limits.items():
            text += f"LiteRT cannot hold {name}: {'; '.join(limits)}\n"
        for entry in self.entries:
            for operator in entry.outside:
                text += f"{entry.name} runs outside XNNPACK ({operator}). Use instead: "
                text += f"{instead_of(operator)}.\n"
            text += "".join(f"{entry.name}: {note}\n" for note in entry.notes)
        return text + "".join(f"{note}.\n" for note in self.notes)


def weight_limits(scheme: WeightScheme) -> tuple[str, ...]:
    """What of a weight scheme no `.tflite` can hold."""
    return scheme.quantizer.limits(scheme)


def activation_limits(scheme: ActivationScheme) -> tuple[str, ...]:
    """What of an activation scheme no `.tflite` can hold."""
    return scheme.quantizer.limits(scheme)


def describe_weights(scheme: WeightScheme) -> str:
    return scheme.quantizer.describe(scheme)


def describe_quantizer(layer: FakeQuantize) -> str:
    text = layer.quantizer.describe(layer.scheme)
    if layer.fixed_range is not None:
        low, high = layer.fixed_range
        return f"{text}, fixed {low:g} … {high:.4g}"
    return f"{text}, {type(layer.scheme.observer).__name__}"
