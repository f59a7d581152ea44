import json
import math

import numpy as np
import pytest
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.bundle import golden
from tfcompress.export.bundle.files import (
    bundle_files,
    check_golden,
    read_bundle,
    write_bundle,
    write_files,
)
from tfcompress.export.bundle.metadata import versions
from tfcompress.export.files import sha256
from tfcompress.export.runtime.runner import Runner
from tfcompress.files.sealed_json import sealed
from tfcompress.version import __version__


def place(data, folder, name="model.tflite"):
    path = folder / name
    path.write_bytes(data)
    return path


def test_metadata(int8_file, tmp_path):
    path = place(int8_file, tmp_path)
    steps = [{"op": "resize", "height": 8, "width": 8}, {"op": "rescale", "scale": 1 / 255}]
    report = {"accuracy": np.float32(0.5), "sizes": np.arange(2), "ratio": math.nan, "ok": True}
    written = write_bundle(path, preprocessing=steps, labels=["a", "b", "ü"], report=report)
    assert written == tmp_path / "model.json"
    metadata = json.loads(written.read_text("utf-8"))
    assert metadata["file"]["name"] == "model.tflite"
    assert metadata["file"]["sha256"] == sha256(int8_file)
    assert metadata["file"]["bytes"] == len(int8_file)
    assert metadata["preprocessing"] == steps
    assert metadata["labels"] == ["a", "b", "ü"]
    assert metadata["report"] == {"accuracy": 0.5, "sizes": [0, 1], "ratio": None, "ok": True}
    assert metadata["versions"] == versions()
    assert metadata["versions"]["tfcompress"] == __version__
    (signature,) = metadata["signatures"]
    info = Runner(path).inputs["image"]
    assert signature["inputs"] == [
        {
            "name": "image",
            "shape": [1, 8, 8, 1],
            "dtype": "int8",
            "scale": info.scale,
            "zero_point": -128,
        }
    ]
    assert np.float32(signature["inputs"][0]["scale"]) == np.float32(info.scale)


def test_golden_pairs_hold_and_are_plain_integers(int8_file, tmp_path):
    path = place(int8_file, tmp_path)
    write_bundle(path)
    assert check_golden(path) == 0.0
    content = json.loads((tmp_path / "model.golden.json").read_text())
    assert content["tolerance_steps"] == 1
    assert content["steps"] == {"serving_default": {"logits": 1, "embedding": 1}}
    assert len(content["samples"]) == 4
    image = content["samples"][0]["inputs"]["image"]
    assert len(image) == 64
    assert all(type(value) is int for value in image)
    # The ramp covers the range from end to end.
    assert (image[0], image[-1]) == (-128, 127)
    outputs = Runner(path).run_codes(np.array(image, np.int8).reshape(1, 8, 8, 1))
    assert content["samples"][0]["outputs"]["logits"] == outputs["logits"][0].tolist()


def test_everything_can_be_made_before_anything_is_written(int8_file, tmp_path):
    path = tmp_path / "model.tflite"
    files = bundle_files(int8_file, path, labels=["a", "b", "c"])
    assert [place.name for place in files] == ["model.golden.json", "model.json"]
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(int8_file)
    assert write_files(path, files) == tmp_path / "model.json"
    assert check_golden(path) == 0.0


def test_synthetic_samples_are_seeded(int8_file, tmp_path):
    path = place(int8_file, tmp_path)
    texts = []
    for seed in (0, 0, 1):
        write_bundle(path, seed=seed)
        texts.append((tmp_path / "model.golden.json").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_given_samples_are_used(int8_file, images, tmp_path):
    path = place(int8_file, tmp_path)
    write_bundle(path, golden_data=images[5:], num_golden=2)
    samples = read_bundle(path).golden["samples"]
    expected = Runner(path).quantize("image", images[5:7]).reshape(2, -1)
    assert [sample["inputs"]["image"] for sample in samples] == expected.tolist()
    assert check_golden(path) == 0.0
    with pytest.raises(ValueError, match="at least one sample"):
        write_bundle(path, golden_data=images[:0])


@pytest.mark.parametrize("change", [1, 3])
def test_a_difference_is_measured_in_steps(int8_file, tmp_path, change):
    path = place(int8_file, tmp_path)
    write_bundle(path)
    golden_path = tmp_path / "model.golden.json"
    content = json.loads(golden_path.read_text())
    value = content["samples"][2]["outputs"]["logits"][1]
    content["samples"][2]["outputs"]["logits"][1] = value - change if value > 0 else value + change
    golden_path.write_text(json.dumps(sealed(content)))
    assert check_golden(path) == change


def test_float_files(float_file, tmp_path):
    path = place(float_file, tmp_path)
    write_bundle(path)
    assert check_golden(path) <= golden.TOLERANCE_STEPS
    (signature,) = read_bundle(path).metadata["signatures"]
    assert signature["inputs"][0]["scale"] is None
    golden_path = tmp_path / "model.golden.json"
    content = json.loads(golden_path.read_text())
    values = [s["outputs"]["logits"] for s in content["samples"]]
    assert content["steps"]["serving_default"]["logits"] == pytest.approx(
        1e-4 * np.abs(values).max()
    )
    content["samples"][0]["outputs"]["logits"][0] += 0.01 * np.abs(values).max()
    golden_path.write_text(json.dumps(sealed(content)))
    assert check_golden(path) == pytest.approx(100, rel=0.05)


def test_every_signature_has_pairs(two_signatures_file, images, tmp_path):
    path = place(two_signatures_file, tmp_path)
    write_bundle(path, num_golden=2)
    bundle = read_bundle(path)
    assert [s["key"] for s in bundle.metadata["signatures"]] == ["classify", "embed"]
    assert [s["signature"] for s in bundle.golden["samples"]] == ["classify"] * 2 + ["embed"] * 2
    assert check_golden(path) == 0.0
    write_bundle(path, golden_data={"classify": images[:1], "embed": images[1:2]})
    assert len(read_bundle(path).golden["samples"]) == 2
    with pytest.raises(ValueError, match=r"signatures \['classify', 'embed'\] as keys"):
        write_bundle(path, golden_data={"classify": images})


def test_plain_integer_inputs_need_real_samples(tokens_file, tmp_path):
    path = place(tokens_file, tmp_path)
    with pytest.raises(ValueError, match="'tokens' holds plain int32"):
        write_bundle(path)
    data = {"tokens": np.array([[1, 2, 9]]), "weight": np.ones((1, 2))}
    write_bundle(path, golden_data=data)
    assert check_golden(path) == 0.0
    assert read_bundle(path).golden["samples"][0]["inputs"]["tokens"] == [1, 2, 9]


def test_large_inputs_get_fewer_samples(int8_file, tmp_path, monkeypatch):
    path = place(int8_file, tmp_path)
    monkeypatch.setattr(golden, "MAX_VALUES", 150)
    write_bundle(path, num_golden=10)
    assert len(read_bundle(path).golden["samples"]) == 2
    monkeypatch.setattr(golden, "MAX_VALUES", 3)
    write_bundle(path)
    assert len(read_bundle(path).golden["samples"]) == 1


def test_no_pairs_on_request(int8_file, tmp_path):
    path = place(int8_file, tmp_path)
    write_bundle(path)
    write_bundle(path, num_golden=0)
    assert not (tmp_path / "model.golden.json").exists()
    assert read_bundle(path).golden is None
    with pytest.raises(ValueError, match="num_golden of 1 or more"):
        check_golden(path)
    with pytest.raises(ValueError, match="num_golden=-1"):
        write_bundle(path, num_golden=-1)


def test_a_bundle_of_another_file_is_refused(int8_file, float_file, tmp_path):
    path = place(int8_file, tmp_path)
    bundle = write_bundle(path)
    other = place(float_file, tmp_path, "other.tflite")
    with pytest.raises(ValueError, match="file that the bundle was written for"):
        check_golden(other, bundle)
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(int8_file))
    model.description = b"changed"
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    with pytest.raises(ValueError, match="Write the bundle again"):
        check_golden(path)


def test_wrong_arguments(int8_file, tmp_path):
    path = place(int8_file, tmp_path)
    with pytest.raises(ValueError, match=r"as many labels.*Received: 4 labels"):
        write_bundle(path, labels=list("abcd"))
    with pytest.raises(TypeError, match=r"report\['a'\]\[1\] of type <class 'object'>"):
        write_bundle(path, report={"a": [1, object()]})
    assert not (tmp_path / "model.json").exists()
    with pytest.raises(ValueError, match="which does not exist"):
        write_bundle(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match=r"which does not exist. Write it with write_bundle"):
        read_bundle(path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match="Expected JSON"):
        read_bundle(path)
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(ValueError, match="without them"):
        read_bundle(path)
    (tmp_path / "model.json").write_text('{"format": 9, "file": {}, "signatures": []}')
    with pytest.raises(ValueError, match=r"Expected format 2.*of format 9"):
        read_bundle(path)


def test_files_of_two_exports_are_told_apart(int8_file, float_file, tmp_path):
    """A failure between two renames, or a file that was copied alone."""
    path = place(int8_file, tmp_path)
    bundle = write_bundle(path)
    old = {name: (tmp_path / name).read_text() for name in ("model.json", "model.golden.json")}
    place(float_file, tmp_path)
    for given in (path, bundle):
        with pytest.raises(ValueError, match=r"bundle was written for.*of two exports"):
            read_bundle(given)
    write_bundle(path)
    (tmp_path / "model.golden.json").write_text(old["model.golden.json"])
    with pytest.raises(ValueError, match=r"written for.*golden.json' with .*of two exports"):
        read_bundle(path)
    path.unlink()
    (tmp_path / "model.json").write_text(old["model.json"])
    # On a phone's side the description may lie alone.
    assert read_bundle(bundle).metadata["file"]["sha256"] == sha256(int8_file)
    with pytest.raises(ValueError, match="does not exist"):
        read_bundle(path)


#: Values of entries that no export writes, under a checksum that fits.
ABSURD = [
    {"signatures": []},
    {"labels": [{"a": 1}]},
    {"preprocessing": [{"op": "unknown"}]},
    {"versions": [1]},
    {"report": []},
    {"file": {"sha256": "0" * 64, "name": "../x.tflite"}},
    {"file": {"sha256": "0" * 64, "bytes": -5}},
]
ABSURD_INPUTS = [
    {"scale": 0},
    {"scale": "x"},
    {"scale": None},
    {"zero_point": 1e30},
    {"shape": [1, 10**12]},
    {"shape": [-1, 8]},
    {"dtype": "object"},
    {"name": 5},
]


def with_input(card, **changes):
    """A card whose first input has other values."""
    card = json.loads(json.dumps(card))
    card["signatures"][0]["inputs"][0].update(changes)
    return card


def test_damage_and_crafted_content_end_in_one_kind_of_error(int8_file, tmp_path):
    path = place(int8_file, tmp_path)
    bundle = write_bundle(path, num_golden=1)
    golden_path = tmp_path / "model.golden.json"
    card, pairs = json.loads(bundle.read_text()), json.loads(golden_path.read_text())
    edited = {**card, "labels": ["a", "b", "c"]}
    crafted = [
        json.dumps(edited),
        json.dumps(sealed({**card, "file": []})),
        json.dumps(sealed({**card, "file": {"sha256": 5}})),
        json.dumps(sealed({**card, "signatures": [None]})),
        json.dumps(sealed({**card, "golden": ["/etc/passwd"]})),
        json.dumps(sealed({**card, "golden": "../../other.json"})),
        *(json.dumps(sealed({**card, **change})) for change in ABSURD),
        *(json.dumps(sealed(with_input(card, **change))) for change in ABSURD_INPUTS),
        "[" * 100_000,
        bundle.read_text().replace("true", "1e999") + "1e999",
        '{"format": NaN}',
    ]
    for text in crafted:
        bundle.write_text(text)
        with pytest.raises(ValueError, match=r"(?s)^Expected.*Received"):
            read_bundle(path)
    bundle.write_text(json.dumps(card))
    sample = pairs["samples"][0]
    for samples, steps in (
        ([{}], pairs["steps"]),
        ([{**sample, "signature": "none"}], pairs["steps"]),
        ([{**sample, "inputs": {"image": [1, 2]}}], pairs["steps"]),
        ([{**sample, "inputs": {"image": [10**30] * 64}}], pairs["steps"]),
        ([{**sample, "outputs": {}}], pairs["steps"]),
        ("text", pairs["steps"]),
        ([sample], {}),
        ([sample], {"serving_default": {"logits": 0, "embedding": 1}}),
    ):
        content = sealed({**pairs, "samples": samples, "steps": steps})
        golden_path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"^Expected golden pairs.*Received"):
            check_golden(path)
