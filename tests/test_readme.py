"""The README's Python blocks run, one after the other, as a reader would paste them."""

from tests.pages import ROOT, blocks, run_blocks

README = ROOT / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    assert blocks(README)
    namespace = run_blocks(README)
    assert {p.name for p in tmp_path.iterdir()} == {
        "model.tflite",
        "model.json",
        "model.golden.json",
    }
    assert "No float tensor is left." in capsys.readouterr().out
    assert namespace["report"].agreement >= 0.9
