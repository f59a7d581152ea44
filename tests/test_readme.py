"""The README's Python blocks run, one after the other, as a reader would paste them."""

import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert {p.name for p in tmp_path.iterdir()} == {
        "model.tflite",
        "model.json",
        "model.golden.json",
        "model.packed",
    }
    assert "No float tensor is left." in capsys.readouterr().out
    assert namespace["report"].agreement >= 0.9


def test_commands_exist():
    text = README.read_text(encoding="utf-8")
    for script in re.findall(r"bash (tools/\w+\.sh)", text):
        assert (README.parent / script).exists()
