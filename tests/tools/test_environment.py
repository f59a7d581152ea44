"""The scripts' own Python: too old, missing, stale."""

import shutil
import subprocess

import pytest

from tests.pages import ROOT


@pytest.fixture
def run(tmp_path):
    """Sources `tools/environment.sh` in an empty folder, as the scripts do."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "environment.sh", tmp_path / "tools")

    def call(python):
        script = "set -euo pipefail; . tools/environment.sh; .venv/bin/python -c 'print(6 * 7)'"
        return subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
            capture_output=True,
            text=True,
        )

    return call, tmp_path


def test_a_python_that_is_too_old_or_missing_is_one_line(run):
    call, folder = run
    old = folder / "old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\n')
    old.chmod(0o755)
    done = call(old)
    assert done.returncode == 2
    assert done.stderr == (
        "error: expected Python 3.10 to 3.13, found: Python 3.9.1. Set PYTHON to the path of one.\n"
    )
    assert call(folder / "none").returncode == 2


#: A Python that is new enough and makes environments of a copy of itself, in no time.
_STUB = """#!/bin/sh
case "$*" in
  "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-c print(6 * 7)") echo 42 ;;
esac
"""


def test_a_stale_environment_is_made_again(run):
    call, folder = run
    stub = folder / "stub"
    stub.write_text(_STUB)
    stub.chmod(0o755)
    left = folder / ".venv" / "left"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").symlink_to(folder / "gone")
    left.write_text("x")
    done = call(stub)
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert "made again" in done.stderr
    assert not left.exists()
    # A working one stays.
    left.write_text("x")
    done = call(stub)
    assert (done.returncode, done.stderr) == (0, "")
    assert left.exists()
