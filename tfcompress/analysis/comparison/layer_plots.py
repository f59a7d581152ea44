"""Plots of what rounding does to each layer, for the pages of reports."""

from __future__ import annotations

from collections.abc import Sequence

from tfcompress.analysis.comparison import svg
from tfcompress.analysis.comparison.layer_errors import LayerError


def layer_plots(errors: Sequence[LayerError]) -> list[tuple[str, str]]:
    """Titles and plots: signal-to-noise, codes, use of the range, saturation, dead channels.

    Args:
        errors: Of the layers, in the order to show.
    """
    noise = [(e.name, [e.snr_db, e.own_snr_db, e.weight_snr_db]) for e in errors]
    names = ["tensor, all roundings", "tensor, rounded here alone", "kernel"]
    used = [(e.name, [100 * e.codes / e.num_codes]) for e in errors]
    spans = [(e.name, [100 * (e.largest - e.smallest) / (e.high - e.low)])
             for e in errors if e.high > e.low]  # fmt: skip
    found = [
        ("Signal-to-noise ratio", svg.bars(noise, names, "dB", highest=70)),
        ("Codes in use", svg.bars(used, ["codes"], "% of the codes", highest=100)),
        ("Span of the values", svg.bars(spans, ["values"], "% of the range")),
    ]
    clipped = [(e.name, [100 * e.saturated]) for e in errors if e.saturated > 0]
    if clipped:
        found.append(("Values outside the range", svg.bars(clipped, ["outside"], "%")))
    dead = [(e.name, [100 * e.dead_channels / e.channels]) for e in errors if e.dead_channels]
    if dead:
        found.append(("Channels of one code", svg.bars(dead, ["dead"], "%")))
    return found
