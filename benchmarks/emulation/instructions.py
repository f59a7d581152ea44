"""Instructions that an ARM CPU executes per inference: int8 against float, shrunk against full."""

from __future__ import annotations

import contextlib
import io
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from absl import flags

import tfcompress as tfc
from benchmarks import latency, structured
from benchmarks.emulation.emulator import Emulator
from recipes.results import Results, markdown


def count(
    emulator: Emulator, cpus: Sequence[str], results: Results, origin: Mapping[str, str]
) -> None:
    """Adds a row for each network, variant and CPU that has none.

    Args:
        emulator: Counts.
        cpus: Names of CPUs.
        results: The rows.
        origin: Further columns: where the rows come from.
    """
    options = flags.FLAGS
    for name in options.architectures or latency.ARCHITECTURES:
        is_shrunk = name == options.architecture
        shrunk = [f"half the MACs, widths of {s}" for s in options.round_to] if is_shrunk else []
        wanted = [
            (variant, cpu)
            for variant in ("float", "int8", *shrunk)
            for cpu in cpus
            if not results.has(network=name, variant=variant, cpu=cpu)
        ]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            files = latency.build_files(name, pathlib.Path(folder))
            if is_shrunk:
                files |= dict(zip(shrunk, _shrunk(name, pathlib.Path(folder)), strict=True))
            for variant, cpu in wanted:
                instructions = emulator.instructions(cpu, files[variant])
                row = {"network": name, "variant": variant, "cpu": cpu}
                results.add(**row, instructions=instructions, **origin)
                print(name, variant, cpu, f"{instructions:,}", flush=True)


def _shrunk(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """int8 files of half the MACs, one for each `--round_to`."""
    keras.utils.set_random_seed(0)
    model = latency.ARCHITECTURES[name]()
    shape = (32, *model.inputs[0].shape[1:])
    images = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    latency.settle_batch_norm(model, images)
    steps = [int(step) for step in flags.FLAGS.round_to]
    found = structured.candidates(model, [0.5], steps, flags.FLAGS.ranking)
    paths = []
    for i, candidate in enumerate(list(found.values())[1:]):
        latency.settle_batch_norm(candidate, images)
        paths.append(folder / f"shrunk_{i}.tflite")
        with contextlib.redirect_stdout(io.StringIO()):
            tfc.export_tflite(candidate, paths[-1], calibration_data=images, verify_samples=0)
    return paths


def table(results: Results, cpus: Sequence[str]) -> str:
    """Per network and variant: millions of instructions, and the ratio to float or to full int8."""
    found = {
        (row["network"], row["variant"], row["cpu"]): int(row["instructions"])
        for row in results.rows
    }
    lines = []
    for network, variant in dict.fromkeys(key[:2] for key in found):
        reference = {"float": "", "int8": "float"}.get(variant, "int8")
        cells = []
        for cpu in cpus:
            own, other = (found.get((network, v, cpu)) for v in (variant, reference))
            ratio = f" ({own / other:.2f})" if own and other else ""
            cells.append(f"{own / 1e6:.2f}{ratio}" if own else "")
        lines.append((network, variant, *cells))
    return markdown(("network", "variant", *cpus), lines)
