"""Layers, functions, custom layers and small nets: int8 as trained, float and named, or refused.

    python -m benchmarks.sweep                      # runs what has no row yet
    python -m benchmarks.sweep --only=softmax,where
    python -m benchmarks.sweep --page > docs/sweep.md

Each case is planned by itself, then calibrated, exported and run by the bare runtime
(`ai_edge_litert`), beside the Keras model; they are outputs of one model, 16 together. The cases
are those of the parity tests. A row says:

| column     | what it is                                                                    |
|------------|-------------------------------------------------------------------------------|
| outcome    | `int8`; `float` and named by the plan (`unnamed` if not); `refused`; `failed`   |
| equal      | share of outputs whose codes are those of the Keras model                     |
| largest    | largest difference in steps of the output; of 1/255 of the span for a float one |
| values     | compared outputs                                                              |
| operations | what the model is made of                                                     |
| reason     | why it is not in int8                                                         |
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfcompress as tfc
from benchmarks.sweep_page import page
from recipes import origin
from recipes.results import Results
from tests.parity import cases, more_cases, test_layers, test_moves
from tests.parity.conftest import randomize
from tests.quantization.operators import test_elementwise, test_normalization
from tfcompress.model import Graph

_ONLY = flags.DEFINE_list("only", [], "Cases whose name holds one of these words; all by default.")
_OUTPUT = flags.DEFINE_string("output", "recipes/results", "Folder of the rows.")
_PAGE = flags.DEFINE_bool("page", False, "Print the page of the results instead.")

_SAMPLES = 96
#: Cases that share a model.
_SHARED = 16


@dataclasses.dataclass(frozen=True)
class Trial:
    """A call to run.

    Attributes:
        kind: What it is one of.
        name: Its name, unique in its kind.
        body: The call, on a symbolic tensor.
        given: What it is called on, equal for calls that may share a model.
    """

    kind: str
    name: str
    body: Callable
    given: Given


@dataclasses.dataclass(frozen=True)
class Given:
    """An input.

    Attributes:
        symbolic: Makes the symbolic tensor.
        data: `data(count)` gives as many inputs.
    """

    symbolic: Callable[[], keras.KerasTensor]
    data: Callable[[int], np.ndarray]


def trials() -> list[Trial]:
    """All cases of the parity tests."""
    found = []
    image, vector = _given((8, 8, 1), _images), _given((4,), _spread)
    behind = _given((6, 6, 4), _normal((6, 6, 4)))
    for name, (body, _) in test_layers.CASES.items():
        found.append(Trial("layers", name, body, image))
    for name, body in test_moves.CASES.items():
        found.append(Trial("moves and reductions", name, body, image))
    for name, body in test_elementwise.FUNCTIONS.items():
        found.append(Trial("functions of each value", name, body, vector))
    for name, body in test_normalization.NORMS.items():
        found.append(Trial("norms", name, _behind_convolution(body), behind))
    inputs = {n: Given(_symbolic(n), _data(n)) for n in cases.INPUTS}
    for kind, listed in {**cases.KINDS, **more_cases.ELSEWHERE}.items():
        for name, case in listed.items():
            found.append(Trial(kind, name, case.make, inputs[case.given]))
    return found


def _given(shape: tuple[int, ...], data: Callable) -> Given:
    return Given(lambda: keras.Input(shape, name="x"), data)


def _symbolic(name: str) -> Callable[[], keras.KerasTensor]:
    return lambda: cases.symbolic(name)


def _data(name: str) -> Callable[[int], np.ndarray]:
    return lambda count: cases.samples(name, count)


def _behind_convolution(body: Callable) -> Callable:
    return lambda x: body(layers.Conv2D(8, 3)(x))


def _images(count: int) -> np.ndarray:
    from sklearn.datasets import load_digits

    return (load_digits().images[:count, :, :, None] / 16.0).astype(np.float32)


def _spread(count: int) -> np.ndarray:
    values = np.random.default_rng(0).permutation(np.linspace(-2.1, 3.2, 4 * count))
    return values.reshape(-1, 4).astype(np.float32)


def _normal(shape: tuple) -> Callable[[int], np.ndarray]:
    return lambda count: np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)


# --- runs -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Planned:
    """A case with its plan.

    Attributes:
        trial: The case.
        floats: Name → reason, of its layers in float.
        refusal: Why `plan` refuses it; empty where it does not.
        operations: What its model is made of.
    """

    trial: Trial
    floats: dict[str, str]
    refusal: str = ""
    operations: str = ""

    def row(self, outcome: str, **found: Any) -> dict[str, Any]:
        """Its row."""
        reason = self.refusal or "; ".join(f"{n}: {why}" for n, why in self.floats.items())
        row = {"kind": self.trial.kind, "name": self.trial.name, "outcome": outcome}
        row.update(equal="", largest="", values=0, operations=self.operations, reason=reason)
        return {**row, **found}


def plan(trial: Trial) -> Planned:
    """What `tfc.plan` says of a case."""
    result = Planned(trial, {})
    try:
        model = build([trial])
        result.operations = " ".join(sorted(set(_operations(model))))
        result.floats = tfc.plan(model).refused_floats
    except Exception as error:
        result.refusal = _text(error)
    return result


def build(chosen: Sequence[Trial]) -> keras.Model:
    """A model of cases on one input, with an output for each."""
    keras.utils.set_random_seed(0)
    inputs = chosen[0].given.symbolic()
    outputs = {trial.name: trial.body(inputs) for trial in chosen}
    # What is in float or only moves codes is no model to quantize by itself.
    is_float = keras.backend.is_float_dtype(inputs.dtype)
    flat = layers.Flatten()(inputs)
    outputs["beside"] = layers.Dense(1)(flat) if is_float else layers.Embedding(10, 2)(flat)
    model = keras.Model(inputs, outputs)
    randomize(model)
    return model


def run(group: Sequence[Planned], folder: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of cases on one input, which share a file."""
    model = build([planned.trial for planned in group])
    data = group[0].trial.given.data(_SAMPLES)
    quantized = tfc.quantize(model, calibration_data=data)
    path, is_float = folder / "model.tflite", bool(group[0].floats)
    report = tfc.export_tflite(
        quantized, path, verify_samples=0, allow_float=is_float, golden_data=data[:2]
    )
    expected, found = quantized.predict(data, verbose=0), run_file(path, data)
    rows = []
    for planned in group:
        values, step = found[planned.trial.name]
        difference = np.abs(values - expected[planned.trial.name]) / step
        outcome = "float" if is_float else "unnamed" if report.float_tensors else "int8"
        rows.append(
            planned.row(
                outcome,
                equal=f"{np.mean(difference < 0.5):.5f}",
                largest=int(np.round(difference.max())),
                values=difference.size,
            )
        )
    return rows


def run_file(path: pathlib.Path, data: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
    """Output → its values, and the step of its codes; 1/255 of the span of a float one."""
    runtime = Interpreter(str(path))
    runner = runtime.get_signature_runner()
    ((name, given),) = runner.get_input_details().items()
    if given["dtype"] == np.int8:
        scale, zero_point = given["quantization"]
        data = np.clip(np.rint(data / np.float32(scale)) + zero_point, -128, 127)
    outputs = [runner(**{name: sample[None]}) for sample in data.astype(given["dtype"])]
    found = {}
    for output, detail in runner.get_output_details().items():
        values = np.concatenate([each[output] for each in outputs]).astype(np.float64)
        step = 1.0
        if detail["dtype"] == np.int8:
            step, zero_point = detail["quantization"]
            values = (values - zero_point) * step
        elif detail["dtype"] == np.float32:
            step = max(float(np.ptp(values)) / 255, 1e-9)
        found[output] = values, step
    return found


def sweep(pending: Sequence[Trial], folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The rows of cases: those on one input share files, apart in int8 and with float parts."""
    groups: dict[tuple[Given, bool], list[Planned]] = {}
    for trial in pending:
        planned = plan(trial)
        if planned.refusal:
            yield planned.row("refused")
            continue
        key = trial.given, bool(planned.floats)
        groups.setdefault(key, []).append(planned)
        if len(groups[key]) == _SHARED:
            yield from _rows(groups.pop(key), folder)
    for group in groups.values():
        yield from _rows(group, folder)


def _rows(group: Sequence[Planned], folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    try:
        yield from run(group, folder)
    except Exception as error:
        if len(group) == 1:
            yield group[0].row("failed", reason=_text(error))
            return
        for planned in group:
            yield from _rows([planned], folder)
    keras.backend.clear_session(free_memory=False)


def _operations(model: keras.Model) -> Iterator[str]:
    for operation in Graph.from_model(model).operations():
        yield type(operation).__name__
        function = getattr(operation, "activation", None)
        if function is not None and function is not keras.activations.linear:
            yield getattr(function, "__name__", "function")


def _text(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    results = Results(pathlib.Path(_OUTPUT.value) / "sweep.csv", ("kind", "name"))
    if _PAGE.value:
        print(page(results.rows), end="")
        return
    warnings.simplefilter("ignore")
    now = origin.commit()
    pending = [
        trial
        for trial in trials()
        if not results.has(kind=trial.kind, name=trial.name)
        and (not _ONLY.value or any(word in trial.name for word in _ONLY.value))
    ]
    with tfc.shared_converter(), tempfile.TemporaryDirectory() as folder:
        for row in sweep(pending, pathlib.Path(folder)):
            results.add(**row, commit=now)
            print(*(row[c] for c in ("kind", "name", "outcome", "equal", "largest")), flush=True)


if __name__ == "__main__":
    app.run(main)
