"""The pages under `docs/`: their Python blocks run, and what they name exists."""

import importlib.util
import inspect
import re
import shlex
import subprocess
import sys

import keras
import pytest

import tfcompress as tfc
from recipes import pictures, tables
from tests.pages import PAGES, ROOT, blocks, run_blocks
from tfcompress_cli.commands import COMMANDS
from tfcompress_cli.main import main

WITH_CODE = [page for page in PAGES if page.parent.name == "docs" and blocks(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registered = dict(keras.saving.get_custom_objects())
    try:
        run_blocks(page)
    finally:
        # Pages register layers and observers under names that another page may use too.
        keras.saving.get_custom_objects().clear()
        keras.saving.get_custom_objects().update(registered)
    if page.stem == "start":
        for line in "\n".join(blocks(page, "bash")).splitlines():
            if line.startswith("tfcompress "):
                assert main(shlex.split(line)[1:]) == 0, line
        assert (tmp_path / "digits-module" / "build.gradle.kts").is_file()


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason='needs pip install ".[tests]"')
    command = "python -m sphinx -W -b html docs build/docs"
    assert f"`{command}`" in (ROOT / "README.md").read_text(encoding="utf-8")
    arguments = [str(tmp_path) if a == "build/docs" else a for a in command.split()[1:]]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "reference.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    for script in re.findall(r"bash (tools/\w+\.sh)", text):
        assert (ROOT / script).exists(), script
    for module in re.findall(r"-m\s+((?:recipes|benchmarks)\.\w+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
    for command in re.findall(r"^tfcompress (\w+)", text, re.M):
        assert command in COMMANDS, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\btfc((?:\.\w+)+)", text):
        value = tfc
        for name in path.strip(".").split("."):
            assert hasattr(value, name), f"tfc{path}"
            value = getattr(value, name)
    for module in re.findall(r"\btfcompress(?:\.\w+)+", text):
        # A module, or a name in one.
        assert _found(module) or _found(module.rpartition(".")[0]), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_named_in_backquotes_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:tfcompress|tests|tools|recipes|benchmarks|docs)/[\w./]*)`", text)
    assert not [path for path in paths if not (ROOT / path).exists()]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_every_page_is_in_the_site():
    found = set()
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.rst")]:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"toctree::\n((?:   .*\n|\n)*)|```{toctree}\n(.*?)```", text, re.S):
            found |= {line.strip() for part in block for line in part.splitlines()}
    found |= {"index", "search"}  # `sensitivity` includes `search`.
    pages = {page.stem for page in (ROOT / "docs").iterdir() if page.suffix in (".md", ".rst")}
    assert not pages - found


def test_public_modules_are_in_the_reference():
    text = (ROOT / "docs" / "reference.rst").read_text(encoding="utf-8")
    modules = {name for name in tfc.__all__ if inspect.ismodule(getattr(tfc, name))}
    assert modules == set(re.findall(r"^\.\. automodule:: tfcompress\.(\w+)$", text, re.M))


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.stem)
def test_tables_are_those_of_the_rows(page):
    # Written by python -m recipes.tables
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text


def test_pictures_are_those_that_the_command_draws():
    # Written by python -m recipes.pictures
    found = {picture.stem for picture in (ROOT / "docs" / "pictures").iterdir()}
    assert found == set(pictures.PICTURES)
