"""Plain-text tables."""

from tfcompress.tables import Printable, render_table


def test_cells_headings_and_title():
    text = render_table(
        "Sizes", ("name", "bytes", "share"), [("a", 12345, 0.123456), ("b", 7, 1.0)]
    )
    lines = text.splitlines()
    assert lines[0].strip() == "Sizes"
    heading = next(line for line in lines if "name" in line)
    assert "bytes" in heading
    assert "12,345" in text
    assert "0.1235" in text
    # Numbers are flush right, so their last digits stand below each other.
    rows = [line for line in lines if line.strip().startswith(("a ", "b "))]
    assert rows[0].index("12,345") + 6 == rows[1].index("7") + 1
    assert not any(line != line.rstrip() for line in lines)


def test_truth_nothing_brackets_and_no_title():
    text = render_table("", ("x", "y"), [(True, None), (False, "[red]text[/red]")])
    assert "yes" in text
    assert "no" in text
    assert "None" not in text
    # What stands in brackets is no markup.
    assert "[red]text[/red]" in text
    assert render_table("", ("x",), []).count("x") == 1


def test_long_cells_stay_within_the_width():
    text = render_table("t", ("a", "b"), [("word " * 40, "x" * 50)], width=60)
    assert max(map(len, text.splitlines())) <= 60


class _Report(Printable):
    def __str__(self):
        table = render_table("Sizes & more", ("name", "bytes"), [("<a>", 1200), ("b", 3)])
        return f"one < two\n\n{table}three\n"


def test_a_notebook_shows_the_same_as_tables():
    page = _Report()._repr_html_()
    assert "<p>one &lt; two</p>" in page
    assert "<caption>Sizes &amp; more</caption>" in page
    assert "<td>&lt;a&gt;</td><td class=n>1,200</td>" in page
    assert "<p>three</p>" in page
    # Printing is as before.
    assert "─" in str(_Report())
    assert "<" not in str(_Report()).replace("one < two", "").replace("<a>", "")
