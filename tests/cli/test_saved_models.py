"""`tfcompress compress` on models that Keras 3 does not load: one line that says what to do."""

import keras
import pytest

import tfcompress as tfc
from tfcompress_cli import models
from tfcompress_cli.main import main


@pytest.fixture
def failure(capsys):
    """The one line of a call that fails."""

    def run(path):
        assert main(["compress", str(path), "--data", "digits"]) == 2
        out, error = capsys.readouterr()
        lines = [line for line in error.splitlines() if not line.startswith("warning:")]
        assert (out, len(lines)) == ("", 1)
        return lines[0]

    return run


def test_a_saved_model_of_functions_alone(failure, tmp_path):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).export(
        tmp_path / "exported", verbose=False
    )
    error = failure(tmp_path / "exported")
    assert "functions alone" in error
    assert "model.save('model.keras')" in error


def test_a_folder_that_is_none(failure, tmp_path):
    assert "without saved_model.pb" in failure(tmp_path)


def test_a_saved_model_of_the_legacy_keras(failure, tmp_path, monkeypatch):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    (tmp_path / "keras_metadata.pb").write_bytes(b"")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    monkeypatch.setattr(tfc, "from_tfmot", lambda path: model)
    monkeypatch.setattr(models, "_has_legacy_keras", lambda: True)
    assert models.trained_model(str(tmp_path)) is model
    monkeypatch.setattr(models, "_has_legacy_keras", lambda: False)
    assert "pip install tf_keras" in failure(tmp_path)
