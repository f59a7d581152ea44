"""The recipe runs, resumes, and makes its table, on a handful of images."""

import numpy as np
import pytest

from recipes import distill
from recipes.distill_models import fashion_net, fashion_student
from recipes.distill_results import Run


@pytest.fixture
def make_run(tmp_path):
    rng = np.random.default_rng(0)
    y = (np.arange(128) % 10).astype("int32")

    def build(experiment, shape=(28, 28, 1), **options):
        x = rng.integers(0, 256, (128, *shape)).astype("float32")
        return Run(experiment, [0], 1, 1, ((x, y), (x[:50], y[:50])), tmp_path, **options)

    return build


def test_mnist_and_resuming(make_run, tmp_path, capsys):
    run = make_run("mnist")
    distill.mnist(run)
    rows = run.rows
    assert [row["variant"] for row in rows] == ["2×800 plain", "2×800 distilled, T=10"]
    assert all(0 <= int(row["test_errors"]) <= 50 for row in rows)
    assert {"teacher_mnist_1_128.keras", "mnist_1_128.npz"} < {p.name for p in tmp_path.iterdir()}
    distill.mnist(run)
    assert run.rows == rows
    assert "already in distill.csv" in capsys.readouterr().out
    table = distill.table(rows)
    assert table.count("\n") == 3


def test_never_saw_a_3(make_run):
    run = make_run("never_saw_a_3")
    distill.never_saw_a_3(run)
    first, raised = run.rows
    assert raised["variant"].endswith("bias of 3 raised")
    assert int(raised["errors_on_threes"]) <= int(first["errors_on_threes"])


def test_fashion(make_run):
    run = make_run("fashion", variants=["plain", "logits + hint"])
    distill.fashion(run)
    assert [row["variant"] for row in run.rows] == ["plain", "logits + hint"]
    teacher = fashion_net((32, 64, 96), 128).count_params()
    assert teacher >= 10 * fashion_student().count_params()


@pytest.mark.filterwarnings("ignore:No .tflite file can hold")
def test_lowbit_on_few_images(make_run, tmp_path):
    names = ["w4a4 taught without labels, hints", "w4a8 taught"]
    run = make_run("lowbit_few", shape=(32, 32, 3), variants=names)
    distill.lowbit(run, one_in=4)
    rows = {row["variant"]: row for row in run.rows}
    assert set(rows) == set(names)
    assert {row["train_samples"] for row in run.rows} == {"32"}
    assert (tmp_path / "teacher_lowbit_1_128.keras").exists()
    # The file's accuracy, of 50 images.
    row = rows["w4a8 taught"]
    assert abs(float(row["litert_accuracy"]) - float(row["test_accuracy"])) <= 4
