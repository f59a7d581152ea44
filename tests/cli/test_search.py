"""`tfcompress search` and `tfcompress run` on a small trained model."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress_cli.main import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`(model, data, folder)`."""
    folder = tmp_path_factory.mktemp("search")
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 12)).astype("float32")
    y = (x @ rng.normal(size=(12, 3))).argmax(-1)
    inputs = keras.Input((12,), name="features")
    h = layers.Dense(48, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(h))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(x[:700], y[:700], epochs=8, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x_train=x[:700], y_train=y[:700], x_test=x[700:], y_test=y[700:])
    return folder / "model.keras", folder / "data.npz", folder


def test_a_search_and_its_recipe(files, capfd):
    model, data, folder = files
    out = folder / "found"
    command = ["search", model, "--data", data, "--out", out, "--max-drop", 0.1, "--epochs", 1]
    command += ["--trials", 2, "--options", "int4,channels=0.5", "--json"]
    command += ["--max-instructions", "cortex-a53=0.99", "--max-memory", 4000]
    assert main(list(map(str, command))) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["best"]["drop"]["mean"] <= 0.1
    assert found["test"]["float"] - found["test"]["file"] < 0.2
    assert found["report"]["num_bytes"] == (out / "model.tflite").stat().st_size
    recipe = json.loads((out / "recipe.json").read_text())
    assert {"Instructions": {"limit": 0.99, "cpu": "cortex-a53"}} in recipe["budgets"]
    assert found["report"]["recipe"]["stages"] == recipe["stages"]
    names = {file.name for file in out.iterdir()}
    assert names >= {
        *("model.tflite", "model.json", "model.golden.json", "model.keras", "recipe.json"),
        *("table.json", "sensitivity.json", "front.png", "sensitivity.png"),
    }
    again = ["run", out / "recipe.json", "--out", folder / "again", "--json"]
    assert main(list(map(str, again))) == 0
    repeated = json.loads(capfd.readouterr().out)
    assert repeated["test"]["file"] == pytest.approx(found["test"]["file"], abs=0.02)
    assert repeated["report"]["num_bytes"] == found["report"]["num_bytes"]
    assert tfc.Recipe.load(folder / "again" / "recipe.json").model == str(model)


def test_the_compiled_metric_and_loss_are_those_of_the_file(files, capfd):
    model, data, folder = files
    arrays = np.load(data)
    x, y = arrays["x_test"], arrays["y_test"]
    command = ["--options", "int4", "--epochs", 1, "--trials", 1, "--max-bytes", 1e6, "--json"]

    def search(saved, source, name):
        saved.save(folder / f"{name}.keras")
        call = ["search", folder / f"{name}.keras", "--data", source, "--out", folder / name]
        assert main([str(part) for part in (*call, *command)]) == 0
        return json.loads(capfd.readouterr().out)

    ranked = keras.models.load_model(model)
    top = keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="among_two")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ranked.compile("adam", loss, metrics=[top])
    found = search(ranked, data, "ranked")
    assert found["metric"] == "among_two"
    assert found["test"]["float"] == pytest.approx(ranked.evaluate(x, y, verbose=0)[1], abs=1e-6)

    keras.utils.set_random_seed(0)
    inputs = keras.Input((12,), name="features")
    line = keras.Model(inputs, layers.Dense(2, name="sums")(inputs))
    line.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    targets = np.stack([arrays["x_train"].sum(1), arrays["x_train"].mean(1)], 1)
    line.fit(arrays["x_train"], targets, epochs=2, verbose=0)
    np.savez(folder / "sums.npz", x=arrays["x_train"], y=targets)
    assert search(line, folder / "sums.npz", "line")["metric"] == "mae"


def test_a_loss_that_keras_cannot_load_is_named(files, capsys):
    model, data, folder = files

    def own_loss(y, p):
        return keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)

    own = keras.models.load_model(model)
    own.compile("adam", own_loss)
    own.save(folder / "own.keras")
    call = ["search", folder / "own.keras", "--data", data, "--out", folder / "none"]
    assert main([*map(str, call), "--max-bytes", "1e6"]) == 2
    assert "Could not locate function 'own_loss'" in capsys.readouterr().err


def test_a_run_measures_on_data_that_it_has_not_trained_on(files, capfd):
    model, data, folder = files
    arrays = np.load(data)
    x, y = arrays["x_train"][:100], arrays["y_train"][:100]
    recipe, source = folder / "short.json", folder / "whole.npz"
    recipe.write_text('{"metric": "accuracy", "stages": [{"quantize": {}}, {"train": {}}]}')
    call = [*("run", recipe, "--model", model, "--out", folder / "short", "--data", source)]
    call = list(map(str, call))
    np.savez(source, x=x, y=y)
    assert main(call) == 0
    assert "On 20 validation samples: accuracy of the float model" in capfd.readouterr().out
    np.savez(source, x_train=x, y_train=y, x_test=arrays["x_test"], y_test=arrays["y_test"])
    assert main(call) == 0
    assert "On 200 test samples: accuracy of the float model" in capfd.readouterr().out
    np.savez(source, x=x)
    assert main(call) == 2
    assert "Expected `train` with labels" in capfd.readouterr().err
    taught = [{"quantize": {}}, {"distill": {"labels": 0.0}}, {"train": {}}]
    recipe.write_text(json.dumps({"stages": taught}))
    assert main(call) == 0
    capfd.readouterr()
    recipe.write_text('{"stages": [{"quantize": {}}]}')
    assert main([*call, "--json"]) == 0
    assert set(json.loads(capfd.readouterr().out)) == {"report"}


def test_wrong_calls_say_what_is_wrong(files, capsys):
    model, data, folder = files
    call = ["search", str(model), "--data", str(data), "--out", str(folder / "none")]
    assert main([*call, "--max-bytes", "10", "--options", "int4"]) == 2
    assert "smallest that the options reach" in capsys.readouterr().err
    assert main([*call, "--max-instructions", "a53=few"]) == 2
    assert "Received: 'a53=few'" in capsys.readouterr().err
    assert main([*call, "--options", "int5"]) == 2
    assert "int5" in capsys.readouterr().err
    recipe = folder / "wrong.json"
    recipe.write_text('{\n "stages": [\n  {"quantize": {"bits": 4}}\n ]\n}')
    assert main(["run", str(recipe), "--out", str(folder / "none")]) == 2
    assert "line 3: Unknown key 'bits'" in capsys.readouterr().err
    with_data = [*("run", str(recipe), "--model", str(model), "--data", str(data)), *call[-2:]]
    recipe.write_text('{"stages": [{"train": {"epochs": 1}}]}')
    assert main(with_data) == 2
    assert "Received: the stages ['train']" in capsys.readouterr().err
    recipe.write_text('{"metric": "acuracy", "stages": [{"quantize": {}}]}')
    assert main(with_data) == 2
    assert "Received: 'acuracy'" in capsys.readouterr().err
    assert not list((folder / "none").glob("*.tflite"))
    recipe.write_text('{"stages": [{"quantize": {}}]}')
    assert main(["run", str(recipe), "--out", str(folder / "none")]) == 2
    assert "Expected a model and data" in capsys.readouterr().err
