# Makes .venv a working environment of the wanted Python; sourced by the scripts beside it.
# A .venv that was moved, or whose Python is gone or too old, is made again.
wanted='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))'
python="${PYTHON:-}"
if [ -z "$python" ]; then
  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c "$wanted" 2>/dev/null; then python="$candidate"; break; fi
  done
fi
if [ -z "$python" ] || ! "$python" -c "$wanted" 2>/dev/null; then
  found="$("${python:-python3}" --version 2>/dev/null)" || found=none
  echo "error: expected Python 3.10 to 3.13, found: $found. Set PYTHON to the path of one." >&2
  exit 2
fi
# `pip` in it starts with the path of its Python, which a move breaks.
if [ -e .venv ] && ! { .venv/bin/python -c "$wanted" && .venv/bin/python -m pip --version; } >/dev/null 2>&1; then
  echo "The environment in .venv does not work; it is made again." >&2
  "$python" -m venv --clear .venv
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
