"""The list of slow tests names tests that exist."""

import ast
import pathlib

from tests import slow

ROOT = pathlib.Path(__file__).parents[1]


def test_every_slow_test_exists():
    for name in slow.read():
        path, function = name.split("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, name


def test_the_list_is_written_from_measured_times(tmp_path, monkeypatch):
    monkeypatch.setattr(slow, "_LIST", tmp_path / "slow.txt")
    cases = [
        ("tests.a", "test_x[1]", 0.5),
        ("tests.a", "test_x[2]", 3.0),
        ("tests.a", "test_y", 0.5),
    ]
    lines = [f'<testcase classname="{c}" name="{n}" time="{t}"/>' for c, n, t in cases]
    (tmp_path / "times.xml").write_text(f"<testsuites>{''.join(lines)}</testsuites>")
    slow.write(tmp_path / "times.xml")
    assert slow.read() == {"tests/a.py::test_x": 3.5}
