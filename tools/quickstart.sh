#!/usr/bin/env bash
# Installs tfcompress into .venv and runs the main job on bundled data: train, quantize, export, verify.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/environment.sh
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[recipes,tfmot]"
TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}" .venv/bin/python -m recipes.quickstart "$@"
