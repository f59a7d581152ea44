"""Progress goes to the error output: a bar in a terminal, lines on request, else nothing."""

import io

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.model.progress import Progress


class Terminal(io.StringIO):
    """An error output that says it is a terminal."""

    def isatty(self):
        return True


def in_terminal(monkeypatch, *arguments):
    """What `work` writes to a terminal."""
    found = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", found)
    work(*arguments)
    return found.getvalue()


def work(verbose, inner="auto"):
    with Progress("outer", 2, verbose) as progress:
        progress.stage("first")
        with Progress("inner", 3, inner) as parts:
            for _ in range(3):
                parts.advance()
        progress.stage("second")
        progress.step("0.9 of it")


def test_lines_name_the_stages(capsys):
    work(1)
    found = capsys.readouterr()
    assert found.out == ""
    lines = found.err.splitlines()
    assert [line for line in lines if line.startswith("outer")] == [
        "outer: 0%, first",
        "outer: 50%, second",
        "outer: 100%, 0.9 of it",
    ]
    assert not set("\r\x1b") & set(found.err)


@pytest.mark.parametrize(("verbose", "inner"), [("auto", "auto"), ("auto", 1), (0, 1)])
def test_nothing_in_a_log(verbose, inner, capsys, monkeypatch):
    # Rich takes these for a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    work(verbose, inner)
    assert capsys.readouterr() == ("", "")


def test_a_bar_in_a_terminal_is_erased(monkeypatch):
    text = in_terminal(monkeypatch, "auto")
    for shown in ("outer", "inner", "0.9 of it", "\x1b[?25h"):
        assert shown in text
    assert text.rstrip().endswith("\x1b[2K")


@pytest.mark.parametrize("inner", ["auto", 1])
def test_zero_is_silent_in_a_terminal_and_for_what_it_calls(inner, monkeypatch):
    assert in_terminal(monkeypatch, 0, inner) == ""


def test_a_task_that_fails_is_left(capsys):
    with pytest.raises(KeyError), Progress("failing", 2, 0):
        raise KeyError
    work(1)
    assert "outer" in capsys.readouterr().err


def test_verbose_is_checked():
    with pytest.raises(ValueError, match=r"'auto', 0 or 1\. Received: verbose='loud'"):
        Progress("task", 1, "loud")


def test_quantization_and_export_name_their_stages(tmp_path, capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    for verbose in ("auto", 0, 1):
        quantized = tfc.quantize(model, calibration_data=x, verbose=verbose)
        tfc.export_tflite(quantized, tmp_path / "m.tflite", verbose=verbose)
        found = capsys.readouterr()
        assert found.out == ""
        if verbose != 1:
            assert found.err == ""
    for line in (
        "quantize: 0%, plan",
        "quantize: 50%, calibrate",
        "bias correction: ",
        "export_tflite: 20%, convert",
        "export_tflite: 60%, run the file beside the model",
    ):
        assert f"\n{line}" in f"\n{found.err}"
