"""The recipe runs, resumes and makes its table, on the digits."""

import types

import numpy as np
import pytest

from recipes import shrink as recipe
from tfcompress.tools import datasets


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setitem(recipe.EXPERIMENTS, "criteria", ("digits", "digits_cnn", 1, 1))
    monkeypatch.setattr(recipe, "FACTORS", (2,))
    options = {
        **{"experiment": "criteria", "data_dir": None, "output": tmp_path, "checkpoint": None},
        **{"seeds": ["0"], "epochs": 1, "dense_epochs": 1, "train_samples": 512, "batch_size": 64},
        **{"learning_rate": 1e-3, "dense_rate": 3e-3, "criteria": ["apoz"], "cut": 0.25},
        **{"scratch_rate": 3e-3, "criterion": "magnitude", "target": 0.5, "strength": 1e-2},
        **{"variants": ["shrunk", "masked", "scratch", "uniform_scratch"]},
    }
    return recipe.Run(types.SimpleNamespace(**options))


def test_criteria_and_resuming(run):
    assert datasets.load("digits")[0][0].shape[1:] == (8, 8, 1)
    run.criteria()
    dense, shrunk = run.results.rows
    assert (dense["variant"], shrunk["variant"]) == ("dense", "apoz")
    assert float(shrunk["macs_left"]) == pytest.approx(0.5, abs=0.02)
    assert int(shrunk["parameters"]) < int(dense["parameters"])
    run.criteria()
    assert len(run.results.rows) == 2
    assert "apoz" in run.table()


def test_controls_have_the_same_budget(run):
    run.resnet8()
    rows = {row["variant"]: row for row in run.results.rows}
    assert list(rows) == ["dense", *run.options.variants]
    assert rows["shrunk"]["macs"] == rows["scratch"]["macs"]
    for variant in run.options.variants:
        # Of so few channels each is several per cent of the MACs.
        assert float(rows[variant]["macs_left"]) == pytest.approx(0.5, abs=0.05), variant


def test_the_global_threshold_of_slimming(run):
    model = recipe.models.build("digits_cnn", (8, 8, 1), 10)
    for layer in model.layers:
        if hasattr(layer, "gamma"):
            layer.gamma.assign(np.linspace(0, 1, layer.gamma.shape[0]))
    assert run.threshold(model) == pytest.approx(0.25, abs=0.05)


def test_slimming(run, monkeypatch):
    monkeypatch.setattr(run, "architecture", "digits_cnn")
    run.slimming()
    stages = ("trained", "cut", "tuned")
    names = [f"{kind}, {stage}" for kind in ("penalty", "no penalty") for stage in stages]
    rows = {row["variant"]: row for row in run.results.rows}
    assert list(rows) == names
    for kind in ("penalty", "no penalty"):
        assert float(rows[f"{kind}, trained"]["macs_left"]) == 1.0
        assert float(rows[f"{kind}, cut"]["macs_left"]) < 0.9
        assert rows[f"{kind}, cut"]["macs"] == rows[f"{kind}, tuned"]["macs"]
    run.slimming()
    assert len(run.results.rows) == len(names)
