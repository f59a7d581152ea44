import math
import re

import pytest

from recipes.results import Results, grouped, markdown, mean_and_deviation, summary


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path / "some.csv", ("variant", "seed"))
    for variant, seed, error in (("a, b", 0, 1.0), ("a, b", 1, 2.0), ("c", 0, math.nan)):
        results.add(variant=variant, seed=seed, error=error)
    return results


def test_finished_runs_are_known(results):
    assert results.has(variant="a, b", seed=1)
    assert not results.has(variant="c", seed=1)
    again = Results(results.path, results.key)
    assert again.rows == results.rows
    commit = again.rows[0].pop("commit")
    assert re.fullmatch(r"[0-9a-f]{7,}\+?|unknown", commit)
    assert list(again.rows[0]) == ["variant", "seed", "error", "commit"]
    assert list(again.rows[0].values())[:3] == ["a, b", "0", "1.0"]


def test_a_row_of_other_columns_is_refused(results):
    before = results.path.read_text()
    with pytest.raises(
        ValueError, match=r"Expected the columns.*Received: \['variant', 'seed', 'commit'\]"
    ):
        results.add(variant="c", seed=2)
    assert results.path.read_text() == before


def test_two_writers_share_a_file(results):
    other = Results(results.path, results.key)
    other.add(variant="d", seed=0, error=3.0)
    results.add(variant="e", seed=0, error=4.0)
    assert [row["variant"] for row in results.rows] == ["a, b", "a, b", "c", "d", "e"]


def test_tables_have_a_line_per_setting(results):
    assert list(grouped(results.rows, ("variant",))) == [("a, b",), ("c",)]
    cells = summary(results.rows, ("variant",), {"error": 1})
    assert cells == [("a, b", "2", "1.5 ± 0.7"), ("c", "1", "")]
    assert markdown(("x", "n", "error"), cells).splitlines()[2] == "| a, b | 2 | 1.5 ± 0.7 |"


def test_one_value_has_no_deviation():
    assert mean_and_deviation([2.345]) == "2.35"
    assert mean_and_deviation([1.0, 1.0], 0) == "1 ± 0"
