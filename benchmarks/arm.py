"""Exported files on emulated ARM phones: equal codes, and instructions per inference.

    PY=.venv/bin/python bash benchmarks/emulation/setup.sh FOLDER       # once: Debian 12, root
    python -m benchmarks.arm --emulation=FOLDER
    python -m benchmarks.arm --emulation=FOLDER --part=codes --only=softmax,multiply

`codes` runs a file of every case of the operators' parity tests, of some with power-of-two scales,
and of two networks, on the emulated CPUs and here. It prints per case how many output codes on ARM
are those of x86 and those of the Keras model, and the largest differences in steps. It also names
the operators of the registry that no case has.

`instructions` counts what a CPU executes per inference: the int8 file against the float one, and a
network of half the MACs against the full one. Counts know neither caches nor how many instructions
run at once, so only ratios of like files say something.

`operators` counts files of single operators, fits the table of prices that the package has for
`tfc.count_instructions`, and writes it; `predicted` compares whole networks with it:

    python -m benchmarks.arm --emulation=FOLDER --part=operators
    python -m benchmarks.arm --emulation=FOLDER --part=predicted --architectures=resnet8,lenet300

Rows go to `--output`; what is there already is not run again. FOLDER may be one of your own: what
is run is `FOLDER/run.sh CPU SCRIPT ARGUMENTS...`, which must start an aarch64 Python with NumPy and
LiteRT, and write the number of executed instructions to the file that COUNT names; for `operators`
and `predicted` also at each `sched_yield`, as `count.c` does.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

import tfcompress as tfc
from benchmarks.emulation import codes, instructions, operators
from benchmarks.emulation.cases import cases, not_run
from benchmarks.emulation.emulator import Emulator
from recipes.origin import commit
from recipes.results import Results

_EMULATION = flags.DEFINE_string("emulation", os.environ.get("ARM_EMULATION"), "The set-up.")
_PART = flags.DEFINE_list(
    "part", ["codes", "instructions"], "codes, instructions, operators, predicted."
)
_CPUS = flags.DEFINE_list("cpus", ["cortex-a53", "cortex-a76", "cortex-a710"], "For codes.")
_COUNTED = flags.DEFINE_list("counted", ["cortex-a53", "cortex-a76", "i8mm"], "To count on.")
_ONLY = flags.DEFINE_list("only", [], "Cases whose name holds one of these words; all by default.")
_SAMPLES = flags.DEFINE_integer("samples", 60, "Inputs that each file is run on.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "recipes/results", "Folder of the rows.")
# --architectures, --architecture and --round_to come with the benchmarks of latency.


def command() -> str:
    """The command, without the folders, which are this machine's."""
    given = [a for a in sys.argv[1:] if not a.startswith(("--emulation", "--output"))]
    return " ".join(["python -m benchmarks.arm --emulation=FOLDER", *given])


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    if not _EMULATION.value:
        raise app.UsageError("Expected --emulation=FOLDER, or ARM_EMULATION. See --help.")
    emulator = Emulator(_EMULATION.value)
    folder = pathlib.Path(_OUTPUT.value)
    origin = {"commit": commit(), "command": command()}
    with tfc.shared_converter():
        if "codes" in _PART.value:
            results = Results(folder / "arm_codes.csv", ("kind", "cpu"))
            for case in filter(lambda c: c.is_wanted(_ONLY.value), cases()):
                codes.compare(case, emulator, _CPUS.value, _SAMPLES.value, results, origin)
            print(codes.table(results, _CPUS.value), flush=True)
            print("Not run:", ", ".join(not_run()) or "none", flush=True)
        if "instructions" in _PART.value:
            results = Results(folder / "arm_instructions.csv", ("network", "variant", "cpu"))
            instructions.count(emulator, _COUNTED.value, results, origin)
            print(instructions.table(results, _COUNTED.value), flush=True)
        if "operators" in _PART.value:
            results = Results(folder / "arm_operators.csv", ("file", "cpu"))
            operators.count(emulator, operators.CPUS, results, origin)
            found = {cpu: operators.prices(results, cpu) for cpu in operators.CPUS}
            operators.TABLE.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        if "predicted" in _PART.value:
            results = Results(folder / "arm_predicted.csv", ("network", "variant", "cpu"))
            instructions.predict(emulator, operators.CPUS, results, origin)


if __name__ == "__main__":
    app.run(main)
