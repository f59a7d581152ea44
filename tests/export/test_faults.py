"""Whatever fails in an export: the old set of files stays whole, and nothing is left behind."""

import os
import pathlib
import resource
import tempfile

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.export.bundle.files import check_golden, read_bundle
from tfcompress.files import writing


@pytest.fixture(scope="module")
def quantized():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    x = np.random.default_rng(0).uniform(-1, 1, (16, 4)).astype(np.float32)
    return tfc.quantize(model, calibration_data=x)


@pytest.fixture(scope="module")
def older(quantized, tmp_path_factory):
    """Name → bytes of an earlier export."""
    folder = tmp_path_factory.mktemp("older")
    tfc.export_tflite(quantized, folder / "model.tflite", labels=["a", "b", "c"])
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(older, tmp_path):
    for name, data in older.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def check_whole(folder, older):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == older
    assert check_golden(folder / "model.tflite") == 0.0
    assert read_bundle(folder / "model.tflite").metadata["labels"] == ["a", "b", "c"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_between_the_files(
    quantized, folder, older, converter, monkeypatch, tmp_path_factory, error
):
    replaced = []
    # Of this test alone: other processes of the tests put folders into the machine's.
    temporary = tmp_path_factory.mktemp("temporary")

    def fail_at_the_second(source, target, replace=os.replace):
        replaced.append(target)
        if len(replaced) == 2:
            raise error
        replace(source, target)

    worker = converter.start().folder
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setattr(writing.os, "replace", fail_at_the_second)
        with pytest.raises(type(error)):
            tfc.export_tflite(quantized, folder / "model.tflite", verify_samples=0)
    assert pathlib.Path(replaced[0]).name == "model.tflite"
    check_whole(folder, older)
    assert os.listdir(temporary) == []
    assert os.listdir(worker) == []
    tfc.export_tflite(quantized, folder / "model.tflite", verify_samples=0)
    assert read_bundle(folder / "model.tflite").metadata["labels"] is None


def test_a_temporary_folder_that_is_full(quantized, folder, older, converter):
    converter.start()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(tfc.ConversionError, match=r"temporary folder.*set TMPDIR"):
            tfc.export_tflite(quantized, folder / "model.tflite", verify_samples=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_whole(folder, older)


def test_what_could_not_be_written_is_said_before_the_work(folder, older, monkeypatch):
    """The model is not even looked at."""
    with pytest.raises(ValueError, match=r"at most 255 bytes.*Choose a shorter name"):
        tfc.export_tflite(None, folder / ("n" * 245 + ".tflite"))
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder / "gone"))
        with pytest.raises(ValueError, match=r"gone'.*TMPDIR"):
            tfc.export_tflite(None, folder / "model.tflite")
    check_whole(folder, older)
