"""Are the codes on ARM those of x86 and of the Keras model? One kind of operator per output."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence

import keras
import numpy as np

import tfcompress as tfc
from benchmarks import latency
from benchmarks.emulation.emulator import Emulator, codes_here
from recipes.models import build
from recipes.results import Results, markdown
from tests.parity import test_layers
from tests.parity.conftest import randomize
from tfcompress.export.steps.prepare import output_names
from tfcompress.model.graph import Graph
from tfcompress.quantization.operators.registry import registered

_CALIBRATION = 64
_POWER_OF_TWO = (
    *("add", "subtract", "multiply", "squeeze_excite", "residual", "average_pooling_same"),
    *("silu_layer", "hard_silu_layer", "leaky_relu_layer"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to run.

    Attributes:
        make: Builds the float model; each of its outputs is a kind.
        kinds: Names of the outputs, as rows call them.
        data: `data(count)` builds as many inputs.
        scheme: How it is quantized.
    """

    make: Callable[[], keras.Model]
    kinds: tuple[str, ...]
    data: Callable[[int], np.ndarray]
    scheme: tfc.Scheme | str = "int8"

    def is_wanted(self, words: Collection[str]) -> bool:
        return not words or any(word in kind for kind in self.kinds for word in words)


def cases() -> list[Case]:
    """All models of the comparison."""
    scheme = tfc.Scheme(
        tfc.WeightScheme(power_of_two=True), tfc.ActivationScheme(power_of_two=True)
    )
    found = [_layers(names) for names in test_layers.GROUPS]
    found.append(_layers(_POWER_OF_TWO, ", power-of-two scales", scheme))
    found.append(Case(_mobilenet_v2, ("MobileNetV2-0.35, 64 px",), _images(64)))
    found.append(Case(_resnet8, ("ResNet-8, 32 px",), _images(32)))
    return found


def _layers(names: Sequence[str], suffix: str = "", scheme: tfc.Scheme | str = "int8") -> Case:
    """A model with an output for each of some cases of the parity tests."""

    def make() -> keras.Model:
        inputs = keras.Input((8, 8, 1), name="image")
        outputs = {name: test_layers.CASES[name][0](inputs) for name in names}
        model = keras.Model(inputs, outputs)
        randomize(model)
        return model

    return Case(make, tuple(name + suffix for name in sorted(names)), _digits, scheme)


def _mobilenet_v2() -> keras.Model:
    model = keras.applications.MobileNetV2(
        (64, 64, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    latency.settle_batch_norm(model, _images(64)(32))
    return model


def _resnet8() -> keras.Model:
    model = build("resnet8", (32, 32, 3), 10)
    latency.settle_batch_norm(model, _images(32)(32))
    return model


def _digits(count: int) -> np.ndarray:
    from sklearn.datasets import load_digits

    return (load_digits().images[:count, :, :, None] / 16.0).astype(np.float32)


def _images(size: int) -> Callable[[int], np.ndarray]:
    def draw(count: int) -> np.ndarray:
        values = np.random.default_rng(0).uniform(0, 255, (count, size, size, 3))
        return values.astype(np.float32)

    return draw


def prepare(case: Case, samples: int, folder: pathlib.Path) -> None:
    """Writes `model.tflite`, `inputs.npz` and the codes of the Keras model, `outputs_keras.npz`."""
    keras.utils.set_random_seed(0)
    data = case.data(max(samples, _CALIBRATION))
    model = tfc.quantize(case.make(), case.scheme, calibration_data=data[:_CALIBRATION])
    path = folder / "model.tflite"
    with contextlib.redirect_stdout(io.StringIO()):
        tfc.export_tflite(model, path, verify_samples=0)
    runner = tfc.Runner(path)
    (name,) = runner.input_names
    np.savez(folder / "inputs.npz", **{name: runner.quantize(name, data[:samples])})
    values = keras.tree.flatten(model.predict(data[:samples], verbose=0))
    steps = {}
    for output, value in zip(output_names(model), values, strict=True):
        info = runner.outputs[output]
        steps[output] = np.round(value / np.float32(info.scale)) + info.zero_point
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


def not_run() -> list[str]:
    """Operators of the registry that no case has, by their public names."""
    found = set()
    for case in cases():
        for operation in Graph.from_model(case.make()).operations():
            kind = type(operation).__name__
            snake = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
            function = getattr(getattr(operation, "activation", None), "__name__", "linear")
            found |= {f"layers.{kind}", f"ops.{snake}", f"activations.{snake}"}
            found |= {f"ops.{function}", f"activations.{function}"}
    public = ("layers.", "ops.", "activations.")
    return sorted(name for name in registered() if name.startswith(public) and name not in found)
