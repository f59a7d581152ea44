"""Two workers on this machine, each a process, beside one process alone."""

import json
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc

_WORKER = pathlib.Path(__file__).with_name("worker.py")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    ports = free_ports(2)
    processes = {
        task: subprocess.Popen(
            [sys.executable, str(_WORKER), task, *ports, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for task in ("0", "1", "alone")
    }
    found = {}
    for task, process in processes.items():
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]
        found[task] = json.loads((folder / f"{task}.json").read_text())
    return folder, found


@pytest.mark.parametrize("kind", ["float", "quantized"])
def test_workers_hold_the_same_weights_masks_ranges_and_slots(runs, kind):
    _, found = runs
    assert found["0"][kind] == found["1"][kind]
    assert np.mean(found["0"][kind]["zeros"]) == 0.5
    assert [found[task]["chief"] for task in ("0", "1", "alone")] == [True, False, True]


def test_pruning_on_two_workers_is_pruning_on_one(runs):
    _, found = runs
    two, one = found["0"]["float"], found["alone"]["float"]
    assert two["zeros"] == one["zeros"]
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(two["evaluated"], one["evaluated"], rtol=1e-5)


def test_quantized_training_is_equal_up_to_values_that_round_the_other_way(runs):
    _, found = runs
    two, one = found["0"]["quantized"], found["alone"]["quantized"]
    assert two["losses"][0] == pytest.approx(one["losses"][0], rel=0.02)
    assert two["losses"][-1] < 0.6 * two["losses"][0]


def test_what_the_chief_saved_is_an_ordinary_model(runs, tmp_path, converter):
    folder, _ = runs
    assert not list(folder.glob("1_*.keras"))
    model = keras.saving.load_model(folder / "0_quantized.keras")
    assert type(model) is tfc.QuantizedModel
    report = tfc.export_tflite(model, tmp_path / "m.tflite")
    assert report.agreement == 1.0


def test_other_strategies_and_unbuilt_models_are_refused():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="MultiWorkerMirroredStrategy"):
        tfc.distribute.across_workers(model)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        mirrored = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="MirroredStrategy"):
        tfc.distribute.across_workers(mirrored)


@pytest.mark.parametrize(
    ("task", "chief"), [(("worker", 0), True), (("worker", 1), False), (None, True)]
)
def test_the_chief_writes(task, chief, monkeypatch):
    if task is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        cluster = {"worker": ["localhost:1", "localhost:2"]}
        config = {"cluster": cluster, "task": {"type": task[0], "index": task[1]}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert tfc.distribute.is_chief() is chief


def test_a_chief_beside_workers_is_the_chief(monkeypatch):
    cluster = {"chief": ["localhost:1"], "worker": ["localhost:2"]}
    for kind, chief in (("chief", True), ("worker", False)):
        config = {"cluster": cluster, "task": {"type": kind, "index": 0}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        assert tfc.distribute.is_chief() is chief
