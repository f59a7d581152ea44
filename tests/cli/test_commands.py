"""The command line on real files, on garbage and on wrong calls."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import tfcompress
from tests.pages import ROOT
from tfcompress_cli.commands import COMMANDS
from tfcompress_cli.main import main


@pytest.fixture
def call(capsys):
    """Runs a command in this process: exit code, output, error output."""

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from tfcompress_cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'tfcompress'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in COMMANDS:
        assert f"\n    {name}" in done.stdout


def test_wrong_calls(call):
    for arguments in ([], ["frobnicate"], ["compare", "a"], ["inspect"], ["inspect", "a", "--jso"]):
        code, out, error = call(*arguments)
        assert (code, out) == (2, "")
        assert error.startswith("usage: tfcompress")
        assert "--help" in error.splitlines()[-1]
    code, out, _ = call("--version")
    assert (code, out.strip()) == (0, tfcompress.__version__)
    code, out, _ = call("compare", "--help")
    assert code == 0
    assert "x_test (or x) and y_test (or y)" in out


def test_files_that_cannot_be_used(call, model_files, tmp_path):
    whole = (model_files / "int8.tflite").read_bytes()
    (tmp_path / "short.tflite").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.tflite").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "short.keras").write_bytes((model_files / "model.keras").read_bytes()[:900])
    data = ["--data", "digits"]
    bad = [tmp_path / "short.tflite", tmp_path / "noise.tflite", tmp_path / "none.tflite"]
    calls = [[name, path] for path in bad for name in ("inspect", "lint", "benchmark", "bundle")]
    calls += [["report", path] for path in bad]
    calls += [["compare", model_files / "int8.tflite", path, *data] for path in bad]
    calls += [
        ["compress", tmp_path / "short.keras", *data],
        ["lint", tmp_path / "short.keras"],
        ["compress", model_files / "model.keras", "--data", tmp_path / "none.npz"],
        ["compress", model_files / "model.keras", *data, "--labels", tmp_path / "none.txt"],
        ["lint", tmp_path],
    ]
    for arguments in calls:
        code, out, error = call(*arguments)
        assert (code, out) == (2, ""), (arguments, error)
        lines = [line for line in error.splitlines() if not line.startswith("warning:")]
        assert len(lines) == 1, (arguments, error)
        assert lines[0].startswith("error: "), (arguments, error)


def test_what_cannot_be_written_is_said_before_the_work(call, model_files, tmp_path, monkeypatch):
    def work(*arguments, **options):
        raise AssertionError("It has begun to work.")

    for name in ("quantize", "compare", "search"):
        monkeypatch.setattr(tfcompress, name, work)
    monkeypatch.setattr(tfcompress.Recipe, "run", work)
    model, data = model_files / "model.keras", ["--data", "digits"]
    tfcompress.Recipe([{"quantize": {}}, {"train": {"epochs": 1}}]).save(tmp_path / "recipe.json")
    (tmp_path / "taken").write_text("")
    for name in ("card/a.json", "pairs/a.golden.json", "report/a.report.json"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("found/table.json", "ran/report.json", "page.html"):
        (tmp_path / name).mkdir(parents=True)
    compared = ["compare", model_files / "int8.tflite", *data, "--html"]
    search = ["search", model, *data, "--max-drop", 0.1, "--out"]
    run = ["run", tmp_path / "recipe.json", "--model", model, *data, "--out"]
    for arguments in (
        *(["compress", model, *data, "-o", tmp_path / n / "a.tflite"] for n in ("card", "pairs")),
        ["compress", model, *data, "-o", tmp_path / "report" / "a.tflite"],
        [*compared, tmp_path / "page.html"],
        [*compared, tmp_path / "none" / "page.html"],
        [*search, tmp_path / "found"],
        [*search, tmp_path / "taken"],
        [*run, tmp_path / "ran"],
    ):
        code, _, error = call(*arguments)
        assert code == 2, (arguments, error)
        assert "error: Expected " in error, (arguments, error)
        assert "folder" in error, (arguments, error)


def test_what_is_unforeseen_is_one_line_too(call, model_files, monkeypatch):
    import tfcompress.tools.inspect_tflite as module

    def fail(*arguments):
        raise KeyError("somewhere")

    monkeypatch.setattr(module, "describe", fail)
    code, _, error = call("inspect", model_files / "int8.tflite")
    assert (code, error.count("\n")) == (1, 1)
    assert error.startswith("unexpected KeyError: 'somewhere'")
    _, _, error = call("inspect", model_files / "int8.tflite", "--verbose")
    assert "Traceback" in error


def test_inspect_lint_and_benchmark(call, model_files):
    for name in ("float", "int8"):
        path = model_files / f"{name}.tflite"
        code, out, _ = call("inspect", path, "--json")
        assert (code, len(json.loads(out)["float_tensors"]) > 0) == (0, name == "float")
    code, out, error = call("inspect", model_files / "int8.tflite")
    assert (code, error) == (0, "")
    assert "takes every op" in out
    code, out, _ = call("lint", model_files / "float.tflite", "--no-timing", "--strict", "--json")
    found = json.loads(out)
    assert (code, found["entries"][-1]["is_float"]) == (1, True)
    code, out, _ = call("lint", model_files / "int8.tflite", "--strict")
    assert (code, "takes all" in out) == (0, True)
    files = [f"a={model_files / 'float.tflite'}", model_files / "int8.tflite"]
    code, out, _ = call("benchmark", *files, "--runs=3", "--threads=1", "--json")
    found = json.loads(out)
    assert list(found["medians"]) == ["a", "int8.tflite"]
    assert found["cpu"]


def test_compress_then_report_and_bundle(call, model_files, tmp_path):
    path = tmp_path / "small.tflite"
    (tmp_path / "labels.txt").write_text("\n".join("0123456789"), encoding="utf-8")
    code, out, error = call(
        *("compress", model_files / "model.keras", "-o", path, "--data", "digits"),
        *("--labels", tmp_path / "labels.txt", "--json"),
    )
    assert code == 0, error
    found = json.loads(out)
    assert found["parity"]["serving_default"][0]["equal"] > 0.99
    scores = found["scores"]["serving_default"]
    assert list(scores) == ["float model", "Keras model", "file"]
    assert scores["file"]["accuracy"] > 0.8
    assert {p.name for p in tmp_path.iterdir()} == {
        *("small.tflite", "small.json", "small.golden.json", "small.report.json", "labels.txt"),
    }
    code, out, _ = call("report", path, "--json")
    card = json.loads(out)
    assert card["labels"] == list("0123456789")
    assert card["golden_difference"] == 0
    # Every other tool on the file that was just written, beside a float one of the stock converter.
    code, out, error = call("inspect", path, "--json")
    assert (code, json.loads(out)["float_tensors"], error) == (0, [], "")
    code, out, error = call("lint", path, "--strict", "--no-timing")
    assert (code, "takes all" in out, error) == (0, True, "")
    stock = model_files / "float.tflite"
    code, out, error = call("benchmark", path, stock, "--runs=2")
    assert (code, "float.tflite" in out, error) == (0, True, "")
    code, out, error = call("compare", f"a={path}", f"b={stock}", "--data", "digits", "--runs=0")
    assert (code, error) == (0, "")
    for expected in ("Precision, recall and F1 by class", "same top-1", "360 samples"):
        assert expected in out
    # A file without a card: one line says what to do.
    code, out, error = call("report", stock)
    assert (code, out, error.count("\n")) == (2, "", 1)
    code, out, _ = call("bundle", path, "--golden", 1)
    assert (code, "small.json" in out) == (0, True)
    android = ("--android", tmp_path / "module", "--package", "org.example.small")
    code, out, error = call("bundle", path, *android)
    assert (code, error) == (0, "")
    assert (tmp_path / "module" / "src/main/assets/small.tflite").is_file()
    assert call("bundle", path, "--package", "a.b")[0] == 2
    (tmp_path / "small.golden.json").write_text("{}", encoding="utf-8")
    code, out, error = call("report", path)
    assert (code, error.count("\n")) == (2, 1)


def test_no_logs_reach_the_terminal(model_files, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 8, 8, 1), np.float32))
    command = [sys.executable, "-m", "tfcompress_cli", "compare", model_files / "int8.tflite"]
    command += ["--data", tmp_path / "d.npz", "--runs", "1", "--html", tmp_path / "page.html"]
    # With oneDNN TensorFlow says more.
    more = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"}
    del more["TF_CPP_MIN_LOG_LEVEL"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, env=more)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 samples" in done.stdout
    assert (tmp_path / "page.html").exists()
