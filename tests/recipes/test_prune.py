"""The recipe of pruning runs, resumes, and makes its table and plot, on a few images."""

import types

import numpy as np
import pytest

from recipes import prune
from recipes.prune_results import KEY, plot, table
from recipes.results import Results


@pytest.fixture
def make_run(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (512, 28, 28, 1)).astype("float32")
    y = (np.arange(512) % 10).astype("int32")

    def build(experiment, **options):
        options = types.SimpleNamespace(**{"methods": [], "sparsities": [], **options})
        results = Results(tmp_path / "prune.csv", KEY)
        data = ((x, y), (x[:50], y[:50]))
        return prune.Run(experiment, [0, 1], 4, data, results, options)

    return build


def test_sweep_and_resuming(make_run, tmp_path, capsys):
    run = make_run("sweep", methods=["random", "surgery"], sparsities=[0.9, 0.98])
    prune.sweep(run)
    rows = run.results.rows
    # The whole grid for the first seed, the high sparsities for the second.
    assert [(r["method"], r["sparsity"], r["seed"]) for r in rows] == [
        *((method, s, "0") for method in ("random", "surgery") for s in ("0.9", "0.98")),
        *((method, "0.98", "1") for method in ("random", "surgery")),
    ]
    for row in rows:
        assert float(row["reached"]) == pytest.approx(float(row["sparsity"]), abs=1e-4)
    prune.sweep(run)
    assert run.results.rows == rows
    text = table(rows, "the command")
    assert text.startswith("    the command\n")
    assert "- surgery at 90 %" in text
    assert "(one seed)" in text
    assert "two pooled deviations" in text
    plot(rows, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_an_unknown_method_is_refused(make_run):
    run = make_run("sweep", methods=["magic"])
    with pytest.raises(ValueError, match="Received: method='magic'"):
        prune.sweep(run)
