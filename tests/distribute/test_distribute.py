"""Two workers on this machine, each a process, beside one process alone."""

import ast
import concurrent.futures
import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from recipes import distributed, distributed_ray
from tests import fresh
from tests.distribute import worker


def on_two_workers(folder, kind):
    """What both workers print, or the errors that they end with."""
    ports = distributed.free_ports(2)

    def run(task):
        code = "import sys; from tests.distribute import worker; "
        code += "worker.work(sys.argv[1:3], int(sys.argv[3]), sys.argv[4], sys.argv[5])"
        try:
            return fresh.run(code, *ports, task, folder, kind).splitlines()[-1], None
        except AssertionError as error:
            return None, str(error)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(run, (0, 1)))
    # Not in the threads: two of them that parse at once are an error in Python 3.11.
    return [ast.literal_eval(text) if error is None else error for text, error in found]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The folder of the recipe on two workers, and what each of them has found."""
    folder = tmp_path_factory.mktemp("recipe")
    return folder, on_two_workers(folder, "whole")


def test_imports_run_nothing():
    """A strategy of several workers must be made before TensorFlow runs anything."""
    fresh.run(
        """
        import tensorflow as tf
        import recipes.distributed
        tf.config.threading.set_intra_op_parallelism_threads(1)  # Raises once TensorFlow has run.
        """
    )


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """What two workers have found without the recipe."""
    found = on_two_workers(tmp_path_factory.mktemp("float"), "float")
    errors = [text for text in found if isinstance(text, str)]
    assert not errors, errors[0]
    return found


def test_pruning_on_two_workers_is_pruning_on_one(floats):
    first, second = floats
    assert [first["chief"], second["chief"]] == [True, False]
    assert {**first, "chief": None} == {**second, "chief": None}
    assert np.mean(first["zeros"]) == 0.5
    alone = worker.train_float(tf.distribute.get_strategy())
    assert alone["chief"]
    assert first["zeros"] == alone["zeros"]
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-5)
    np.testing.assert_allclose(first["evaluated"], alone["evaluated"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_criteria_read_the_data_of_all_workers_whichever_has_some(floats):
    alone = worker.masks_from_shards(tf.distribute.get_strategy(), 0)
    for key, expected in alone.items():
        assert floats[0]["shards"][key] == expected, key
    warned = {key[0] for key, found in alone.items() if found is True}
    assert warned == {"taylor"}
    assert np.mean(alone["taylor", "one each"]) == 0.5
    assert 0 < np.mean(alone["apoz", "an empty list"]) < 1


@pytest.mark.slow
def test_workers_send_codes_in_place_of_floats(floats):
    found = floats[0]["gradients"]
    assert found["sends_codes"]
    assert found["losses"][-1] < found["losses"][0]
    # Of 146 gradients, 8 to a word, and a scale for each column or bias.
    assert found["handed"] == found["message_bytes"] == 4 * (19 + 16 + 1 + 2 + 1)
    assert found["float_bytes"] == 4 * 146
    assert found["code_bytes"] == found["handed"]
    assert found["loses_from"] == 8


@pytest.mark.slow
def test_an_overflow_on_one_worker_leaves_out_the_step_of_both(floats):
    assert floats[0]["overflow"] == floats[1]["overflow"] == [4.0, False]


@pytest.mark.slow
def test_a_model_that_is_not_the_same_on_all_workers_is_refused(floats):
    assert "1 of 4 that differ" in floats[0]["refused"]
    assert "b/bias" in floats[0]["refused"]


def test_quantized_and_pruned_the_workers_hold_the_same_weights_masks_ranges_and_slots(recipe):
    _, (first, second) = recipe
    assert first == second


def test_quantized_training_is_equal_up_to_values_that_round_the_other_way(recipe, tmp_path):
    _, ((losses, _), _) = recipe
    alone, _ = worker.train_recipe(tmp_path)
    # In batch norm each worker sees its half of a batch.
    assert losses[0] == pytest.approx(alone[0], rel=0.05)
    assert losses[-1] < 0.6 * losses[0]


def test_what_the_chief_saved_is_an_ordinary_model(recipe, converter):
    folder, _ = recipe
    assert [path.name for path in folder.iterdir()] == ["model.keras"]
    report = distributed.export(folder)
    assert report.agreement == 1.0
    model = keras.saving.load_model(folder / "model.keras")
    assert type(model) is tfc.QuantizedModel
    zeros = [np.mean(np.asarray(k.variable) == 0) for k in tfc.Pruner(model, SCHEDULE).kernels]
    assert min(zeros) > 0.1


SCHEDULE = tfc.ConstantSparsity(0.5)


def test_a_worker_is_lost_and_both_start_again(recipe, tmp_path):
    _, whole = recipe
    first, second = on_two_workers(tmp_path, "killed")
    assert "It died" in second
    # The other one gives up by itself: it waits for gradients that do not come.
    assert isinstance(first, str)
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["backup.weights.h5"]
    again = on_two_workers(tmp_path, "whole")
    assert [digest for _, digest in again] == [digest for _, digest in whole]
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_other_strategies_and_unbuilt_models_are_refused():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="MultiWorkerMirroredStrategy"):
        tfc.distribute.across_workers(model)
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        mirrored = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="MirroredStrategy"):
        tfc.distribute.across_workers(mirrored)


def test_the_recipe_of_ray_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"tfcompress\[ray\]"):
        distributed_ray.launch(2, {"folder": str(tmp_path)})


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
