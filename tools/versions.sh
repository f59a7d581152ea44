#!/usr/bin/env bash
# Installs tfcompress into a new environment, with versions of its requirements if any are given, and
# runs the main jobs there. tfmot is not installed, so absl-py is of the version that others want.
#   bash tools/versions.sh /tmp/oldest "tensorflow==2.20.*" "absl-py==1.4.0"
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:?usage: bash tools/versions.sh FOLDER [requirement ...]}"
shift
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check . "$@"
TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}" "$folder/bin/python" tools/smoke.py
