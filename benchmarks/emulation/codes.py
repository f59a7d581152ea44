"""Are the codes on ARM those of x86 and of the Keras model? One kind of operator per output."""

from __future__ import annotations

import contextlib
import io
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import keras
import numpy as np

import tfcompress as tfc
from benchmarks.emulation.cases import Case
from benchmarks.emulation.emulator import Emulator, codes_here
from recipes.results import Results, markdown
from tfcompress.export.steps.prepare import output_names

_CALIBRATION = 64


def prepare(case: Case, samples: int, folder: pathlib.Path) -> None:
    """Writes `model.tflite`, `inputs.npz` and the codes of the Keras model, `outputs_keras.npz`."""
    keras.utils.set_random_seed(0)
    data = case.data(max(samples, _CALIBRATION))
    model = tfc.quantize(case.make(), case.scheme, calibration_data=data[:_CALIBRATION])
    path = folder / "model.tflite"
    with contextlib.redirect_stdout(io.StringIO()):
        tfc.export_tflite(model, path, verify_samples=0, golden_data=data[:4])
    runner = tfc.Runner(path)
    (name,) = runner.input_names
    np.savez(folder / "inputs.npz", **{name: runner.quantize(name, data[:samples])})
    values = keras.tree.flatten(model.predict(data[:samples], verbose=0))
    steps = {}
    for output, value in zip(output_names(model), values, strict=True):
        info = runner.outputs[output]
        # Positions are whole numbers and have no scale.
        scale = np.float32(info.scale or 1.0)
        steps[output] = np.round(value / scale) + info.zero_point
    np.savez(folder / "outputs_keras.npz", **steps)


def compare(
    case: Case,
    emulator: Emulator,
    cpus: Sequence[str],
    samples: int,
    results: Results,
    origin: Mapping[str, str],
) -> None:
    """Adds a row for each kind of a case and each CPU that has none.

    Args:
        case: The model.
        emulator: Runs it on ARM.
        cpus: Names of CPUs.
        samples: How many inputs to run.
        results: The rows.
        origin: Further columns: where the rows come from.
    """
    cpus = [c for c in cpus if not all(results.has(kind=k, cpu=c) for k in case.kinds)]
    if not cpus:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(case, samples, folder)
        codes_here([folder])
        for cpu in cpus:
            emulator.codes(cpu, [folder])
        outputs = {
            tag: dict(np.load(folder / f"outputs_{tag}.npz")) for tag in ("keras", "x86", *cpus)
        }
    for kind, output in zip(case.kinds, sorted(outputs["x86"]), strict=True):
        shares = []
        for cpu in cpus:
            given = outputs[cpu][output].astype(np.float64)
            row = {"kind": kind, "cpu": cpu, "values": given.size}
            for tag in ("x86", "keras"):
                difference = np.abs(given - outputs[tag][output])
                row[f"equal_{tag}"] = f"{np.mean(difference == 0):.6f}"
                row[f"largest_{tag}"] = int(difference.max())
            if not results.has(kind=kind, cpu=cpu):
                results.add(**row, **origin)
            shares.append(f"{cpu} {_share(row)}, of Keras {float(row['equal_keras']):.3%}")
        print(f"{kind}: {'; '.join(shares)}", flush=True)


def table(results: Results, cpus: Sequence[str]) -> str:
    """The kinds that differ on ARM, one line each, and how many do not."""
    by_kind: dict[str, dict[str, dict[str, str]]] = {}
    for row in results.rows:
        by_kind.setdefault(row["kind"], {})[row["cpu"]] = row
    lines, count = [], 0
    for kind, rows in by_kind.items():
        found = [rows[cpu] for cpu in cpus if cpu in rows]
        if all(float(row["equal_x86"]) == 1 for row in found):
            count += 1
        else:
            lines.append((kind, *(_share(rows.get(cpu)) for cpu in cpus)))
    shares = [float(row["equal_keras"]) for row in results.rows] or [1.0]
    text = (
        f"{count} of {len(by_kind)} kinds: every code on ARM is that of x86.\n"
        f"Equal to Keras' codes: {np.mean(shares):.4%} on average, at least {min(shares):.4%}.\n"
    )
    return text + (markdown(("kind", *cpus), lines) if lines else "")


def _share(row: Mapping[str, str] | None) -> str:
    if row is None:
        return ""
    return f"{float(row['equal_x86']):.3%}, at most {row['largest_x86']} off"
