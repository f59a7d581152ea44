#!/usr/bin/env bash
# Installs tfcompress with what its tests need into .venv and runs them on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[tests,tfmot]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python tools/typecheck.py
TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}" .venv/bin/python -m pytest -n 2 --durations=25 "$@"
