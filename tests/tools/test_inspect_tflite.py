import json

import pytest

from tfcompress.tools.inspect_tflite import describe


def test_tables(model_files, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    text = describe(model_files / "int8.tflite")
    for expected in ("FULLY_CONNECTED", "serving_default", "image", "int8", "32x64", "2,048"):
        assert expected in text
    assert text.endswith("XNNPACK: takes every op, in 1 partition(s)")


def test_json(model_files):
    content = json.loads(describe(model_files / "int8.tflite", as_json=True))
    assert content["op_counts"]["FULLY_CONNECTED"] == 2
    assert content["float_tensors"] == []
    assert content["num_bytes"] == (model_files / "int8.tflite").stat().st_size
    assert content["delegation"]["num_partitions"] == 1
    weights = next(t for t in content["tensors"] if t["shape"] == [32, 64])
    assert (weights["dtype"], len(weights["scales"]), weights["num_bytes"]) == ("int8", 32, 2048)
    assert 0 <= weights["sparsity"] < 0.5


def test_wrong_files(model_files, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        describe(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match="TFLite flatbuffer"):
        describe(model_files / "model.keras")


def test_the_script(run_tool, model_files):
    done = run_tool("inspect_tflite", model_files / "float.tflite", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["float_tensors"]) > 0


def test_the_script_explains_mistakes(run_tool, model_files):
    done = run_tool("inspect_tflite", model_files / "none.tflite")
    assert done.returncode == 2
    assert done.stdout == ""
    # TensorFlow may have logged before.
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: Expected the path of a .tflite file. Received:")
    assert "Traceback" not in done.stderr
    done = run_tool("inspect_tflite")
    assert (done.returncode, "Received: []" in done.stderr) == (2, True)


def test_the_script_shows_its_flags(run_tool):
    done = run_tool("inspect_tflite", "--help")
    assert "Lists what is in a .tflite" in done.stdout
    assert "--[no]json" in done.stdout
