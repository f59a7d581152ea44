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
