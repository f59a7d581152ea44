"""The nets of `benchmarks.nets`, untrained: wholly in int8, and equal to the Keras model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from benchmarks.tasks import data, detection, table
from benchmarks.tasks.audio import step_inputs, streaming
from benchmarks.tasks.catalog import TASKS
from benchmarks.tasks.task import Split

#: Those whose kinds of layers no other parity test has together.
NAMES = ("sensor", "detector", "espcn", "embedding", "siamese")


def samples(model, count=24):
    """Numbers like those of pictures."""
    random = np.random.default_rng(0)
    return [random.uniform(0, 255, (count, *t.shape[1:])).astype(np.float32) for t in model.inputs]


def adapted(name, count=24):
    inputs = [np.random.default_rng(0).normal(size=(8, 16, 2)) for _ in range(3)]
    model = TASKS[name].build(Split(inputs, None))
    given = samples(model, count)
    if any(isinstance(la, keras.layers.BatchNormalization) for la in model._flatten_layers()):
        tfc.reestimate_batch_norm(model, given[0] if len(given) == 1 else given)
    return model, given if len(given) > 1 else given[0]


@pytest.mark.filterwarnings("ignore:The ranges of:UserWarning")
def test_untrained_nets_are_equal_codes(tmp_path):
    quantized, given = {}, {}
    for name in NAMES:
        model, given[name] = adapted(name)
        assert not tfc.plan(model).float_layers, name
        quantized[name] = tfc.quantize(model, calibration_data=given[name], bias_correction=False)
    frames = np.random.default_rng(0).normal(size=(2, data.FRAMES, data.BANDS)).astype(np.float32)
    step = streaming()
    given["streaming"] = step_inputs(step, Split([frames], None), 32)
    quantized["streaming"] = tfc.quantize(
        step, calibration_data=given["streaming"], bias_correction=False
    )
    report = tfc.export_tflite(quantized, tmp_path / "nets.tflite", verify_data=given)
    assert not report.float_tensors
    wrong = [p for ps in report.parity.values() for p in ps if p.equal < 0.99 or p.largest > 1]
    assert not wrong
    # Heads have ranges of their own, states that come out those of the states that go in.
    heads = tfc.Runner(tmp_path / "nets.tflite", signature="detector").outputs
    assert heads["boxes"].scale != heads["scores"].scale
    runner = tfc.Runner(tmp_path / "nets.tflite", signature="streaming")
    for name in ("seen", "state"):
        before, after = runner.inputs[name], runner.outputs[f"next_{name}"]
        assert (before.scale, before.zero_point) == (after.scale, after.zero_point)


def test_what_the_detector_should_find_scores_100(monkeypatch):
    digits = tf.random.stateless_uniform((40, 28, 28, 1), (0, 1), 50, 255).numpy()
    split = Split([digits], np.arange(40) % 10)
    monkeypatch.setattr(data, "pictures", lambda *args: (split, split))
    monkeypatch.setattr(detection, "COUNTS", (3, 20))
    _, test = detection.scenes(None)
    scores = 10.0 * np.eye(detection.BACKGROUND + 1)[test.targets["scores"]]
    boxes = test.targets["boxes"]
    assert detection.f1({"boxes": boxes[..., :4], "scores": scores}, test) == 100.0
    moved = boxes[..., :4] + np.float32([2.0, 0, 0, 0])
    assert detection.f1({"boxes": moved, "scores": scores}, test) < 5


def test_the_page_is_that_of_the_rows():
    assert table.PAGE.read_text(encoding="utf-8") == table.page()
