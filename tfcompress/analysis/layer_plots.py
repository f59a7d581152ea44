"""Plots of what rounding does to each layer, for the pages of reports."""

from __future__ import annotations

from collections.abc import Sequence

from tfcompress.analysis import svg
from tfcompress.analysis.layer_errors import LayerError


def layer_sections(errors: Sequence[LayerError], name: str = "") -> list[tuple[str, str]]:
    """Headings and plots: signal-to-noise, codes, use of the range, saturation.

    Args:
        errors: Of the layers; the first plot keeps their order, others have running order.
        name: Of the model, where a page shows several.
    """
    in_order = sorted(errors, key=lambda e: e.quantizer)
    noise = [(e.name, [e.snr_db, e.own_snr_db, e.weight_snr_db]) for e in errors]
    names = ["tensor, all roundings", "tensor, rounded here alone", "kernel"]
    used = [(e.name, [100 * e.codes / e.num_codes]) for e in in_order]
    spans = [(e.name, [100 * (e.largest - e.smallest) / (e.high - e.low)])
             for e in in_order if e.high > e.low]  # fmt: skip
    clipped = [(e.name, [100 * e.saturated]) for e in in_order if e.saturated > 0]
    of = f" of {name}" if name else ""
    return [
        (f"Signal-to-noise ratio by layer{of}", svg.bars(noise, names, "dB", highest=70)),
        (f"Codes in use{of}", svg.bars(used, ["codes"], "% of the codes", highest=100)),
        (f"Span of the values{of}", svg.bars(spans, ["values"], "% of the range")),
        (f"Values outside the range{of}", svg.bars(clipped, ["outside"], "%") if clipped else ""),
    ]
