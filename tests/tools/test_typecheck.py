"""The type checker's baseline: new errors fail, and so do entries that no longer occur."""

import collections

import pytest

from tools import typecheck

LINES = [
    'a/b.py:3: error: Item "None" has no attribute "x"  [union-attr]',
    'a/b.py:90: error: Item "None" has no attribute "y"  [union-attr]',
    "a/c.py:1: error: Function is missing a return type annotation  [no-untyped-def]",
]


def test_errors_are_counted_by_file_and_code():
    counts = typecheck.count_errors(LINES)
    assert counts == {("a/b.py", "union-attr"): 2, ("a/c.py", "no-untyped-def"): 1}


def test_the_baseline_is_read_as_it_was_written(tmp_path):
    counts = typecheck.count_errors(LINES)
    typecheck.write_baseline(counts, tmp_path / "baseline.txt")
    assert typecheck.read_baseline(tmp_path / "baseline.txt") == counts


def test_new_and_fixed_errors_are_told_apart():
    allowed = collections.Counter({("a/b.py", "union-attr"): 1, ("a/d.py", "misc"): 2})
    new, fixed = typecheck.compare(typecheck.count_errors(LINES), allowed)
    assert new == {("a/b.py", "union-attr"): 1, ("a/c.py", "no-untyped-def"): 1}
    assert fixed == {("a/d.py", "misc"): 2}


@pytest.mark.parametrize(
    ("lines", "left", "status"),
    [(LINES, LINES, 0), (LINES[:1], LINES[:1], 1), ([*LINES, *LINES[:1]], LINES, 1)],
    ids=["equal", "fixed", "new"],
)
def test_the_status_says_whether_the_baseline_holds(
    tmp_path, monkeypatch, capsys, lines, left, status
):
    path = tmp_path / "baseline.txt"
    typecheck.write_baseline(typecheck.count_errors(LINES), path)
    monkeypatch.setattr(typecheck, "read_baseline", lambda: READ(path))
    monkeypatch.setattr(typecheck, "write_baseline", lambda counts: WRITE(counts, path))
    monkeypatch.setattr(typecheck, "run_mypy", lambda arguments: lines)
    assert typecheck.main([]) == status
    # Only entries that no longer occur are removed: an error that is new is never taken up.
    typecheck.main(["--shrink"])
    assert READ(path) == typecheck.count_errors(left)
    capsys.readouterr()


READ, WRITE = typecheck.read_baseline, typecheck.write_baseline


def test_no_entry_is_left_for_packages_that_are_clean():
    clean = (
        "tfcompress/__init__.py",
        "tfcompress/callbacks.py",
        "tfcompress/distillation/",
        "tfcompress/factorization/",
        "tfcompress/model/",
        "tfcompress/pruning/",
        "tfcompress/quantization/",
        "tfcompress/sharing/",
        "tfcompress/tools/",
        "tfcompress/version.py",
    )
    assert not [file for file, _ in typecheck.read_baseline() if file.startswith(clean)]
