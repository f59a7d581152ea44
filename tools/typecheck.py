"""Runs mypy over the package and compares its errors with a baseline that may only shrink.

    python tools/typecheck.py             # fails on an error that is not in the baseline,
                                          # and on an entry of the baseline that no longer occurs
    python tools/typecheck.py --shrink    # removes the entries that no longer occur

An entry of `tools/typecheck_baseline.txt` is a file, an error code and the number of such errors in
the file, so that moving a line changes nothing. Other arguments are passed to mypy.
"""

from __future__ import annotations

import collections
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASELINE = ROOT / "tools" / "typecheck_baseline.txt"
_ERROR = re.compile(r"^(?P<file>[^:]+\.py):\d+: error: .*\[(?P<code>[a-z-]+)\]$")

Counts = collections.Counter[tuple[str, str]]


def run_mypy(arguments: list[str]) -> list[str]:
    """Returns the lines of mypy's errors; raises `RuntimeError` if mypy itself fails."""
    command = [sys.executable, "-m", "mypy", "--no-error-summary", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    errors = [line for line in lines if ": error:" in line]
    unknown = [line for line in errors if not _ERROR.match(line)]
    if run.returncode not in (0, 1) or unknown or bool(errors) != bool(run.returncode):
        raise RuntimeError(f"mypy failed ({run.returncode}):\n{run.stdout}{run.stderr}")
    return errors


def count_errors(errors: list[str]) -> Counts:
    """Returns `{(file, error code): count}` of lines that mypy printed."""
    matches = (_ERROR.match(line) for line in errors)
    return collections.Counter((match["file"], match["code"]) for match in matches if match)


def read_baseline(path: pathlib.Path = BASELINE) -> Counts:
    entries = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return collections.Counter({(file, code): int(count) for file, code, count in entries})


def write_baseline(counts: Counts, path: pathlib.Path = BASELINE) -> None:
    lines = [f"{file} {code} {counts[file, code]}\n" for file, code in sorted(counts)]
    path.write_text("".join(lines), encoding="utf-8")


def compare(found: Counts, allowed: Counts) -> tuple[Counts, Counts]:
    """Returns `(new, fixed)`: what is found but not allowed, and what is allowed but not found."""
    return found - allowed, allowed - found


def main(arguments: list[str]) -> int:
    shrink = "--shrink" in arguments
    errors = run_mypy([argument for argument in arguments if argument != "--shrink"])
    allowed = read_baseline()
    new, fixed = compare(count_errors(errors), allowed)
    for line in errors:
        match = _ERROR.match(line)
        if match and (match["file"], match["code"]) in new:
            print(line)
    for (file, code), count in sorted(new.items()):
        print(f"{file}: {count} more [{code}] than the baseline allows")
    if shrink:
        write_baseline(allowed - fixed)
    else:
        for (file, code), count in sorted(fixed.items()):
            print(f"{file}: {count} [{code}] fewer than in the baseline: run with --shrink")
    if new or (fixed and not shrink):
        return 1
    print(f"mypy: no new error; {sum((allowed - fixed).values())} are left in the baseline")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
