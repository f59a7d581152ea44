"""The notebooks of the documentation: their code runs, from the first cell to the last."""

import json

import pytest

from tests.pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells(path, "code"), 1):
        exec(compile("".join(cell["source"]), f"{path}, code {number}", "exec"), namespace)
    assert "No float tensor is left." in capsys.readouterr().out
    assert list(tmp_path.glob("*.tflite"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_show_what_they_print(path):
    # Filled in by: jupyter execute --inplace docs/notebooks/*.ipynb
    printed = "".join(
        "".join(output.get("text", ()))
        for cell in cells(path, "code")
        for output in cell["outputs"]
    )
    assert "No float tensor is left." in printed
    assert "Traceback" not in printed
