import json

import pytest

from tfcompress.tools.inspect_tflite import describe
from tfcompress_cli.output import plain


def test_tables_and_values(model_files):
    text, content = describe(model_files / "int8.tflite", width=140)
    for expected in ("FULLY_CONNECTED", "serving_default", "image", "int8", "32x64", "2,048"):
        assert expected in text
    assert text.endswith("XNNPACK: takes every op, in 1 partition(s)")
    content = json.loads(json.dumps(plain(content)))
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
