import importlib.util
import json
import subprocess

import pytest

from tests.export.bundle.test_files import place
from tfcompress.export.bundle.android import write_android
from tfcompress.export.bundle.files import check_golden, read_bundle, write_bundle

STEPS = [{"op": "rescale", "scale": 1 / 255}]


@pytest.fixture
def module(int8_file, tmp_path):
    path = place(int8_file, tmp_path, "my model.tflite")
    options = {"labels": ["a", "b", "ü"], "preprocessing": STEPS}
    return write_android(path, tmp_path / "module", package="org.example.digits", **options)


def test_the_module_is_complete(module, int8_file, tmp_path):
    files = {p.relative_to(module).as_posix() for p in module.rglob("*") if p.is_file()}
    kotlin = "kotlin/org/example/digits"
    assert files == {
        "README.md",
        "benchmark.sh",
        "build.gradle.kts",
        "src/main/AndroidManifest.xml",
        "src/main/assets/my_model.tflite",
        "src/main/assets/my_model.json",
        "src/main/assets/my_model.labels.txt",
        *(f"src/main/{kotlin}/{n}.kt" for n in ("ModelCard", "ModelRunner")),
        *(f"src/main/{kotlin}/{n}.kt" for n in ("CompiledModelRunner", "InterpreterRunner")),
        "src/androidTest/assets/my_model.golden.json",
        f"src/androidTest/{kotlin}/GoldenPairsTest.kt",
    }
    assert (module / "src/main/assets/my_model.tflite").read_bytes() == int8_file
    card = json.loads((module / "src/main/assets/my_model.json").read_text("utf-8"))
    assert (card["labels"], card["preprocessing"]) == (["a", "b", "ü"], STEPS)
    version = card["versions"]["ai-edge-litert"]
    gradle = (module / "build.gradle.kts").read_text("utf-8")
    assert f'implementation("com.google.ai.edge.litert:litert:{version}")' in gradle
    texts = [(module / name).read_text("utf-8") for name in files if name.endswith((".kt", ".md"))]
    assert not [text for text in texts if "@MODEL@" in text or "@PACKAGE@" in text]
    subprocess.run(["bash", "-n", module / "benchmark.sh"], check=True)
    # The card and the pairs of the module, beside the file.
    pairs = module / "src/androidTest/assets/my_model.golden.json"
    place((module / "src/main/assets/my_model.json").read_bytes(), tmp_path, "my model.json")
    place(pairs.read_bytes(), tmp_path, "my model.golden.json")
    assert check_golden(tmp_path / "my model.tflite") == 0


def test_the_kotlin_parses(module):
    if importlib.util.find_spec("tree_sitter_kotlin") is None:
        pytest.skip("tree-sitter-kotlin is not installed")
    import tree_sitter
    import tree_sitter_kotlin

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_kotlin.language()))
    sources = [*module.rglob("*.kt"), module / "build.gradle.kts"]
    assert len(sources) == 6
    for source in sources:
        tree = parser.parse(source.read_bytes())
        assert not tree.root_node.has_error, source
    assert parser.parse(b"class {").root_node.has_error


def test_a_bundle_is_taken_as_it_is(int8_file, tmp_path):
    path = place(int8_file, tmp_path)
    write_bundle(path, labels=["a", "b", "c"], num_golden=2, report={"accuracy": 0.5})
    folder = write_android(path, tmp_path / "module", bundle=read_bundle(path))
    card = json.loads((folder / "src/main/assets/model.json").read_text("utf-8"))
    assert card == read_bundle(path).metadata
    # Another package takes the place of the first.
    write_android(path, folder, package="a.b")
    assert len(list(folder.rglob("ModelCard.kt"))) == 1


def test_what_is_refused(int8_file, tmp_path):
    path = place(int8_file, tmp_path)
    for package in ("model", "com.Example", "com.object", "com.1a", ""):
        with pytest.raises(ValueError, match="Kotlin package"):
            write_android(path, tmp_path / "module", package=package)
    with pytest.raises(ValueError, match="empty folder"):
        write_android(path, tmp_path)
    with pytest.raises(ValueError, match="num_golden"):
        write_android(path, tmp_path / "module", num_golden=0)
    write_bundle(path, num_golden=0)
    with pytest.raises(ValueError, match="golden pairs"):
        write_android(path, tmp_path / "module", bundle=read_bundle(path))
    assert not (tmp_path / "module").exists()
