"""Reports as one HTML page each, with plots and without any other file."""

from __future__ import annotations

import html
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.analysis.comparison import svg
from tfcompress.analysis.comparison.file_weights import FileKernel, kernels, matching
from tfcompress.analysis.comparison.layer_errors import LayerError
from tfcompress.analysis.comparison.layer_plots import layer_plots
from tfcompress.analysis.comparison.records import ModelFigures
from tfcompress.files.writing import check_writable, write_together
from tfcompress.version import __version__

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1180px;padding:16px}
h1{font-size:1.5em;margin:.2em 0}h2{font-size:1.15em;margin:1.6em 0 .3em}
h3{font-size:1em;margin:.8em 0 .2em;overflow-wrap:anywhere}
p{margin:.3em 0;white-space:pre-line}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;margin:.3em 0 1em;font-size:.93em}
caption{text-align:left;font-weight:600;padding:.2em 0;white-space:nowrap}
th,td{padding:.2em .7em .2em 0;text-align:left;vertical-align:top;white-space:nowrap}
.l{white-space:normal;min-width:18em}
th{border-bottom:1px solid #8888}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
svg{width:100%;height:auto;display:block}
svg text{font-size:12px;fill:currentColor}svg .small{font-size:10.5px}
svg .grid{stroke:#8883}svg .axis{stroke:#888}
.plots{display:grid;gap:12px 28px;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr))}
.legend span{margin-right:1.2em;white-space:nowrap}
.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border-radius:2px}
.gallery{display:flex;flex-wrap:wrap;gap:14px}
figure{margin:0;width:128px}figure img{width:128px;image-rendering:pixelated}
figcaption{font-size:.82em;overflow-wrap:anywhere}
footer{margin-top:2em;font-size:.85em;opacity:.75}
"""
# Weights of more layers make a page that nobody reads.
_MOST_LAYERS = 24
_MOST_CLASSES = 30


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: Heading.
        sections: `(heading, HTML)`; empty ones are left out.
    """
    body = "".join(
        f"<section>{f'<h2>{html.escape(head)}</h2>' if head else ''}{content}</section>"
        for head, content in sections
        if content
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{body}"
        f"<footer>tfcompress {__version__}</footer></body></html>\n"
    )


def check_page_path(path: str | os.PathLike) -> pathlib.Path:
    """Refuses a path that no page can be written to; before the work that the page tells of.

    Raises:
        ValueError: A path that does not end in `.html`, a folder that does not exist or cannot be
            written, or a folder of that name.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".html", ".htm") or not path.parent.is_dir():
        raise ValueError(
            f"Expected a path that ends in .html, in an existing folder. Received: {str(path)!r}"
        )
    check_writable(path)
    return path


def save_page(path: str | os.PathLike, text: str) -> pathlib.Path:
    """Writes a page as a whole.

    Raises:
        ValueError: As `check_page_path`.
    """
    path = check_page_path(path)
    write_together({path: text}, [])
    return path


def comparison_page(
    text: str,
    models: Sequence[ModelFigures],
    files: Mapping[str, bytes],
    layers: Mapping[str, Sequence[LayerError]],
) -> str:
    """The page of a comparison.

    Args:
        text: The tables, as HTML.
        models: Figures of the models.
        files: Name → bytes of the file of a model.
        layers: Name of a quantized model → what rounding does to its tensors.
    """
    sections = [
        ("", text),
        ("Quality against size", _trade_off(models)),
        ("Recall by class", _recalls(models)),
        ("Confusion", _confusions(models)),
        *((f"Layers of {name}", layer_grid(errors)) for name, errors in layers.items() if errors),
        ("Zeros by kernel", _zeros(files)),
        ("Weights", _weights(files)),
    ]
    return page(f"Comparison of {', '.join(m.name for m in models)}", sections)


def _trade_off(given: Sequence[ModelFigures]) -> str:
    models = [m for m in given if m.gzip_bytes]
    if len(models) < 2:
        return ""
    label, _ = _quality(models[0])
    plots = [svg.scatter([(m.name, m.gzip_bytes or 1, _quality(m)[1]) for m in models],
                         "bytes under gzip", label)]  # fmt: skip
    timed = [m for m in models if m.latency_ms]
    if len(timed) > 1:
        points = [(m.name, m.latency_ms or 1.0, _quality(m)[1]) for m in timed]
        plots.append(svg.scatter(points, "milliseconds", label))
    return _plots(plots)


def _quality(model: ModelFigures) -> tuple[str, float]:
    if model.scores is not None:
        name, value = model.scores.headline
        return (f"{name} in %", 100 * value) if name == "accuracy" else (name, value)
    if model.agreement.top1 is not None:
        return "same top-1 in %", 100 * model.agreement.top1
    return "mean difference", model.agreement.mean


def _recalls(models: Sequence[ModelFigures]) -> str:
    scored = [m for m in models if m.scores is not None and m.scores.classes]
    if not scored or scored[0].scores is None or len(scored[0].scores.classes) > _MOST_CLASSES:
        return ""
    rows = [
        (c.name, [m.scores.classes[i].recall if m.scores else None for m in scored])
        for i, c in enumerate(scored[0].scores.classes)
    ]
    return svg.bars(rows, [m.name for m in scored], "recall", highest=1.0)


def _confusions(models: Sequence[ModelFigures]) -> str:
    plots = []
    for model in models:
        scores = model.scores
        if scores is not None and 2 <= len(scores.confusion) <= _MOST_CLASSES:
            names = [c.name for c in scores.classes]
            plots.append(svg.matrix(scores.confusion, names, f"{model.name}: rows are true"))
    return _plots(plots)


def layer_grid(errors: Sequence[LayerError]) -> str:
    """Plots of what rounding does to the layers of one model, side by side."""
    return _plots([f"<h3>{title}</h3>{plot}" for title, plot in layer_plots(errors)])


def _zeros(files: Mapping[str, bytes]) -> str:
    """Share of zeros of each kernel that the files have in common."""
    first, lists = _common_kernels(files)
    rows = []
    for i, own in enumerate(first[:_MOST_LAYERS]):
        matches = [matches[i] for matches in lists.values()]
        rows.append((own.name, [None if k is None else _zero_share(k) for k in matches]))
    return svg.bars(rows, list(lists), "% zeros", highest=100) if rows else ""


def _zero_share(kernel: FileKernel) -> float:
    return 100 * float(np.mean(kernel.values == 0))


def _common_kernels(
    files: Mapping[str, bytes],
) -> tuple[list[FileKernel], dict[str, list[FileKernel | None]]]:
    """The kernels of the first file, and those of each file that match them."""
    found = {name: kernels(data) for name, data in files.items()}
    if not found:
        return [], {}
    first = next(iter(found.values()))
    lists = {name: matching(first, others) for name, others in found.items()}
    return first, {name: matches for name, matches in lists.items() if any(matches)}


def _weights(files: Mapping[str, bytes]) -> str:
    """Histograms of each kernel that the files have in common, by position and size."""
    first, lists = _common_kernels(files)
    plots = []
    for i, own in enumerate(first[:_MOST_LAYERS]):
        series = [(name, k.values) for name, matches in lists.items() if (k := matches[i])]
        shares = ", ".join(f"{n}: {np.mean(v == 0):.0%}" for n, v in series)
        title = f"<h3>{html.escape(own.name)}</h3>"
        plots.append(title + svg.histograms(series, f"weights; zeros {shares}"))
    note = ""
    if len(first) > _MOST_LAYERS:
        note = f"<p>The first {_MOST_LAYERS} of {len(first)} kernels.</p>"
    if len(lists) < len(files):
        left = ", ".join(n for n in files if n not in lists)
        note += f"<p>Not shown, for they have other kernels: {html.escape(left)}.</p>"
    return note + svg.legend(list(lists)) + _plots(plots)


def _plots(plots: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(f"<div>{p}</div>" for p in plots)}</div>' if plots else ""
