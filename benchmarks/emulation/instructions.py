"""Instructions that an ARM CPU executes per inference: int8 against float, shrunk against full.

And what the table of operators predicts of the int8 files.
"""

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

#: Network → presets of fewer bits, whose weights are packed in the file.
PACKED = {"lenet300": ("int4", "w2a8"), "resnet8": ("int4-packed", "int2-packed")}


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
        wanted = [
            (variant, cpu)
            for variant in ("float", *_variants(name))
            for cpu in cpus
            if not results.has(network=name, variant=variant, cpu=cpu)
        ]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            files = _files(name, pathlib.Path(folder))
            for variant, cpu in wanted:
                instructions = emulator.instructions(cpu, files[variant])
                row = {"network": name, "variant": variant, "cpu": cpu}
                results.add(**row, instructions=instructions, **origin)
                print(name, variant, cpu, f"{instructions:,}", flush=True)


def predict(
    emulator: Emulator, cpus: Sequence[str], results: Results, origin: Mapping[str, str]
) -> None:
    """Adds a row for each network, variant in int8 and CPU: predicted and counted instructions.

    Args:
        emulator: Counts.
        cpus: Names of CPUs.
        results: The rows.
        origin: Further columns: where the rows come from.
    """
    for name in flags.FLAGS.architectures or latency.ARCHITECTURES:
        variants = {
            cpu: [v for v in _variants(name) if not results.has(network=name, variant=v, cpu=cpu)]
            for cpu in cpus
        }
        if not any(variants.values()):
            continue
        with tempfile.TemporaryDirectory() as folder:
            files = _files(name, pathlib.Path(folder))
            for cpu, wanted in variants.items():
                counts = emulator.instructions_of(cpu, [files[v] for v in wanted]) if wanted else []
                for variant, counted in zip(wanted, counts, strict=True):
                    predicted = tfc.count_instructions(files[variant], cpu)
                    error = f"{100 * (predicted / counted - 1):+.1f}"
                    row = {"network": name, "variant": variant, "cpu": cpu}
                    row |= {"predicted": predicted, "counted": counted, "error": error}
                    results.add(**row, **origin)
                    print(*row.values(), flush=True)


def _variants(name: str) -> list[str]:
    """The variants of a network in int8."""
    options = flags.FLAGS
    shrunk = [f"half the MACs, widths of {s}" for s in options.round_to]
    return [
        "int8",
        *(shrunk if name == options.architecture else ()),
        *PACKED.get(name, ()),
    ]


def _files(name: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Variant, or `"float"` → file."""
    files = latency.build_files(name, folder)
    if name == flags.FLAGS.architecture:
        shrunk = [v for v in _variants(name) if v != "int8"]
        files |= dict(zip(shrunk, _shrunk(name, folder), strict=True))
    files |= {preset: _packed(name, preset, folder) for preset in PACKED.get(name, ())}
    return files


def _packed(name: str, preset: str, folder: pathlib.Path) -> pathlib.Path:
    """The file of a network by a preset of fewer bits."""
    keras.utils.set_random_seed(0)
    model = latency.ARCHITECTURES[name]()
    shape = (32, *model.inputs[0].shape[1:])
    images = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    path = folder / f"{name}.{preset}.tflite"
    with contextlib.redirect_stdout(io.StringIO()):
        quantized = tfc.quantize(model, preset, calibration_data=images)
        tfc.export_tflite(quantized, path, verify_samples=0)
    return path


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
