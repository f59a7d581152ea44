#!/usr/bin/env bash
# Installs tfcompress with what its tests need into .venv and runs them on two cores.
#   --fast   leaves the slow tests out: an answer in three minutes
# Other arguments go to pytest: bash tools/test.sh --fast tests/pruning -k mask
set -euo pipefail
cd "$(dirname "$0")/.."
arguments=()
for argument in "$@"; do
  case "$argument" in
    --fast) arguments+=(-m "not slow") ;;
    *) arguments+=("$argument") ;;
  esac
done
. tools/environment.sh
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[tests,tfmot]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python tools/typecheck.py
# A file's tests share its fixtures, so one worker runs them all. `tests/conftest.py` gives the order.
TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}" .venv/bin/python -m pytest -n 2 --dist loadfile \
  --no-loadscope-reorder --durations=25 ${arguments[@]+"${arguments[@]}"}
