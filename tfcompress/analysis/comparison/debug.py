"""`debug_quantization`: which layers lose most to rounding, why, and what helps."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np

from tfcompress.analysis.comparison.html import layer_grid, page, save_page
from tfcompress.analysis.comparison.layer_errors import (
    LayerError,
    batches_of,
    few_bits,
    float_outputs,
    layer_in_float,
    layer_in_int8,
    measure,
    output_snr,
    quantizers_of,
    with_range,
)
from tfcompress.model.labelled import split_labels
from tfcompress.model.progress import Progress, Verbosity
from tfcompress.model.rewrite import as_float32
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.observers import LeastSquares
from tfcompress.tables import Printable, html_of, render_table

# A remedy that gains less is none.
_GAIN_DB = 0.1
# Share of values outside a range, and of codes in use, that are called a fault.
_SATURATED, _FEW_CODES = 1e-3, 0.25


@dataclasses.dataclass(frozen=True)
class Remedy:
    """What was tried on one layer, and what it gave.

    Attributes:
        layer: The layer.
        what: What to do.
        snr_db: SNR of the model's outputs with it, on the data.
        gain_db: How much that is more than without.
    """

    layer: str
    what: str
    snr_db: float
    gain_db: float


@dataclasses.dataclass(frozen=True)
class QuantizationDebug(Printable):
    """What `debug_quantization` found. Print it, or `save_html` it. Iterating gives its layers.

    Attributes:
        model: Name of the model.
        layers: Every rounded tensor: first those with a remedy, by gain, then by the noise of
            rounding them.
        output_snr_db: SNR of the model's outputs against those of the same model in float.
        remedies: What helped, largest gain first.
        samples: How many samples were run.
    """

    model: str
    layers: tuple[LayerError, ...]
    output_snr_db: float
    remedies: tuple[Remedy, ...]
    samples: int

    def __iter__(self) -> Any:
        return iter(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return dataclasses.asdict(self)

    def save_html(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes one page with tables and plots, which needs no other file."""
        sections = [("", html_of(self)), ("Layers", layer_grid(self.layers))]
        return save_page(path, page(f"Quantization of {self.model}", sections))

    def __str__(self) -> str:
        rows = [
            (
                e.name,
                e.kernel,
                *(_db(v) for v in (e.snr_db, e.own_snr_db, e.weight_snr_db)),
                f"{e.saturated:.2%}",
                f"{e.codes} of {e.num_codes}",
                f"{e.low:.4g} … {e.high:.4g}",
                f"{e.smallest:.4g} … {e.largest:.4g}",
                f"{e.dead_channels} of {e.channels}" if e.dead_channels else "",
            )
            for e in self.layers
        ]
        columns = ["tensor of", "kernel of", "SNR in dB", "rounded here alone", "kernel's SNR"]
        columns += ["outside", "codes", "range", "values", "dead channels"]
        text = render_table(f"Rounding in {self.model}, worst first", columns, rows, width=180)
        text += f"Outputs: {_db(self.output_snr_db)} dB on {self.samples} samples.\n\n"
        if not self.remedies:
            return text + "No remedy that was tried gains a tenth of a dB.\n"
        found = [(r.layer, r.what, _db(r.snr_db), f"{r.gain_db:+.2f}") for r in self.remedies]
        heads = ("layer", "remedy", "outputs in dB with it", "gain")
        return text + render_table("What helps, measured one at a time", heads, found, width=180)


def _db(value: float | None) -> str:
    if value is None:
        return ""
    return "∞" if math.isinf(value) else f"{value:.1f}"


def debug_quantization(
    model: keras.Model, data: Any, *, most_layers: int = 8, verbose: Verbosity = "auto"
) -> QuantizationDebug:
    """Finds the layers that lose most to rounding, and what helps.

    The model is run twice, rounded and in float, and every rounded tensor is compared. For the
    worst layers remedies are applied, one at a time, and the outputs are measured with each:
    another range, 8 bits where a kernel or a tensor has fewer, or else the layer in float. The
    model is left as it was.

    Args:
        model: A quantized model with known ranges.
        data: Samples, as for `quantize`; labels in them are not read. 32 to 256 are enough.
        most_layers: For how many of the worst layers remedies are tried.
        verbose: 0 shows no progress, 1 prints lines where there is no terminal to show a bar in.

    Returns:
        The layers, worst first. Print it.

    Raises:
        ValueError: A model that is not quantized or has no ranges; data that do not fit.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="logits")])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> int8 = tfc.quantize(model, calibration_data=x)
        >>> found = tfc.debug_quantization(int8, x, verbose=0)
        >>> found.output_snr_db > 30
        True
    """
    ready = as_float32(model)
    quantizers = {q.name: q for q in quantizers_of(ready)}
    if not quantizers:
        raise ValueError(
            f"Expected a quantized model with known ranges. Received: {model.name!r}, which has no "
            "quantizer with one. Pass what tfc.quantize(model, calibration_data=...) gives."
        )
    x, _ = split_labels(data, len(ready.inputs))
    batches = batches_of(ready, x)
    errors, snr, values = measure(ready, batches)
    worst = sorted(errors, key=lambda e: min(e.own_snr_db, e.weight_snr_db or math.inf))
    floats = float_outputs(ready, batches)
    remedies: list[Remedy] = []
    tried = worst[:most_layers]
    with Progress("debug_quantization", len(tried), verbose) as progress:
        for error in tried:
            progress.stage(error.name)
            remedies += _remedies(ready, quantizers[error.quantizer], error, batches, floats, snr,
                                  values.get(error.quantizer))  # fmt: skip
    # The largest gain of a layer last.
    gains = {r.layer: r.gain_db for r in sorted(remedies, key=lambda r: r.gain_db)}
    remedies.sort(key=lambda r: -r.gain_db)
    ordered = sorted(worst, key=lambda e: -gains.get(e.name, 0.0))
    samples = sum(len(keras.tree.flatten(batch)[0]) for batch in batches)
    return QuantizationDebug(model.name, tuple(ordered), snr, tuple(remedies), samples)


def _remedies(
    model: keras.Model,
    quantizer: FakeQuantize,
    error: LayerError,
    batches: Sequence[Any],
    floats: Sequence[Sequence[np.ndarray]],
    snr: float,
    values: np.ndarray | None,
) -> list[Remedy]:
    """What gains: another range, 8 bits; float where neither does."""
    tries: list[tuple[str, Callable[[], AbstractContextManager[None]]]] = []
    if quantizer.fixed_range is None and values is not None:
        if error.saturated > _SATURATED:
            low, high = error.smallest, error.largest
            text = f"a range of all values: calibrate with tfc.MinMax(), {low:.4g} … {high:.4g}"
            tries.append((text, lambda: with_range(quantizer, low, high)))
        elif error.codes < _FEW_CODES * error.num_codes or error.own_snr_db < 35:
            levels = error.num_codes - 1
            found = LeastSquares().estimate(values, levels, quantizer.scheme.symmetric)
            text = f"a range of least squared error: tfc.LeastSquares(), {found[0]:.4g} … "
            text += f"{found[1]:.4g}"
            tries.append((text, lambda: with_range(quantizer, *found)))
    # An input is no layer of a configuration.
    by_config = not quantizer.rounds_input
    few = few_bits(model, quantizer) if by_config else []
    if few:
        text = f"{dict.fromkeys(few, 'int8')} in the configuration, instead of fewer bits"
        smallest, largest = error.smallest, error.largest
        tries.append((text, lambda: layer_in_int8(model, quantizer, smallest, largest)))

    def measured(what: str, applied: Callable[[], AbstractContextManager[None]]) -> list[Remedy]:
        with applied():
            after = output_snr(model, batches, floats)
        gains = after - snr > _GAIN_DB
        return [Remedy(error.name, what, after, after - snr)] if gains else []

    helped = [remedy for what, applied in tries for remedy in measured(what, applied)]
    if helped or not by_config:
        return helped
    text = f"{{{error.kernel or error.name!r}: None}} in the configuration, which keeps it in float"
    return measured(text, lambda: layer_in_float(model, quantizer))
