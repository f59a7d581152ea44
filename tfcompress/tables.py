"""Tables for everything that is printed: as plain text, and as HTML in a notebook."""

from __future__ import annotations

import contextvars
import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

# While it is set, tables are HTML between these marks.
_is_html = contextvars.ContextVar("is_html", default=False)
_BEGIN, _END = "\x02", "\x03"

_STYLE = (
    "<style>.tfc table{border-collapse:collapse;margin:.4em 0 1em}"
    ".tfc caption{text-align:left;font-weight:600;padding:.2em 0;white-space:nowrap}"
    ".tfc th,.tfc td{padding:.15em .7em;text-align:left;vertical-align:top;"
    "white-space:nowrap}.tfc .l{white-space:normal;min-width:18em}"
    ".tfc th{border-bottom:1px solid currentColor}"
    ".tfc td.n,.tfc th.n{text-align:right;font-variant-numeric:tabular-nums}"
    ".tfc .scroll{overflow-x:auto;max-width:100%}.tfc p{margin:.3em 0;white-space:pre-line}</style>"
)


# Longer cells are broken into lines.
_LONG = 36


class Printable:
    """A report that is printed by its `__str__`, of text and `render_table`.

    A notebook shows the same with tables of its own.
    """

    def _repr_html_(self) -> str:
        return _STYLE + f'<div class="tfc">{html_of(self)}</div>'


def html_of(report: object) -> str:
    """The text and the tables of a report as HTML."""
    token = _is_html.set(True)
    try:
        text = str(report)
    finally:
        _is_html.reset(token)
    parts = re.split(f"{_BEGIN}(.*?){_END}", text, flags=re.S)
    # Text and tables take turns.
    return "".join(part if i % 2 else _paragraphs(part) for i, part in enumerate(parts))


def _paragraphs(text: str) -> str:
    blocks = [block.strip("\n") for block in re.split(r"\n\s*\n", text) if block.strip()]
    return "".join(f"<p>{html.escape(block)}</p>" for block in blocks)


def render_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, width: int = 140
) -> str:
    """Returns a table as text; numbers are aligned right.

    Args:
        title: Printed above the table; empty for none.
        columns: Headings.
        rows: One sequence of cells per row; anything with a `str`.
        width: Characters to a line.
    """
    cells = [[_cell(cell) for cell in row] for row in rows]
    is_number = [
        bool(cells) and all(isinstance(row[i], _Number) or not row[i] for row in cells)
        for i in range(len(columns))
    ]
    if _is_html.get():
        return _BEGIN + html_table(title, columns, cells, is_number) + _END
    return _text_table(title, columns, cells, is_number, width)


def html_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], is_number: Sequence[bool]
) -> str:
    """A table as HTML.

    Args:
        title: Its caption; empty for none.
        columns: Headings.
        rows: Cells.
        is_number: Which columns are aligned right.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        shown = (
            f"<{tag}{_class(cell, number)}>{html.escape(str(cell))}</{tag}>"
            for cell, number in zip(cells, is_number, strict=True)
        )
        return f"<tr>{''.join(shown)}</tr>"

    caption = f"<caption>{html.escape(title)}</caption>" if title else ""
    head, body = row(columns, "th"), "".join(row(cells, "td") for cells in rows)
    table = f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _class(cell: str, is_number: bool) -> str:
    return " class=n" if is_number else " class=l" if len(cell) > _LONG else ""


def _text_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    is_number: Sequence[bool],
    width: int,
) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for column, number in zip(columns, is_number, strict=True):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, markup=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


class _Number(str):
    __slots__ = ()


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return _Number(f"{value:,}")
    if isinstance(value, float):
        return _Number(f"{value:.4g}")
    text = str(value)
    # Numbers that were formatted by the caller: percentages, ratios, infinity.
    is_number = re.fullmatch(r"[−+-]?(\d[\d,]*(\.\d+)?(e[+-]?\d+)?%?|∞)", text) is not None
    return _Number(text) if is_number else text
