"""The slow tests: those that `tools/test.sh --fast` leaves out, with their seconds.

`slow.txt` beside this file is measured. After a full run on a quiet machine:

    bash tools/test.sh --junitxml=times.xml && .venv/bin/python -m tests.slow times.xml
"""

import collections
import pathlib
import sys
import xml.etree.ElementTree

_LIST = pathlib.Path(__file__).with_name("slow.txt")
# A test is slow whose cases take longer than this on average.
_SECONDS = 0.6


def read() -> dict[str, float]:
    """Test, as `path::function` → seconds of all its cases, the slowest first."""
    lines = map(str.split, _LIST.read_text(encoding="utf-8").splitlines())
    return {name: float(seconds) for seconds, name in lines}


def write(times: pathlib.Path) -> None:
    """Makes the list from a JUnit file of pytest."""
    cases = collections.defaultdict(list)
    for case in xml.etree.ElementTree.parse(times).iter("testcase"):
        path = case.get("classname").replace(".", "/") + ".py"
        cases[f"{path}::{case.get('name').split('[')[0]}"].append(float(case.get("time")))
    slow = {name: sum(t) for name, t in cases.items() if sum(t) > _SECONDS * len(t)}
    lines = [f"{slow[name]:6.1f} {name}\n" for name in sorted(slow, key=slow.get, reverse=True)]
    _LIST.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
