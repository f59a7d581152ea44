"""`lint`: which operators of a model leave XNNPACK on a phone's CPU, what they cost, what to do."""

from __future__ import annotations

import copy
import dataclasses
import re
import time
import warnings
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from tfcompress.export.checks import missing_ranges
from tfcompress.export.conversion.converter import current_converter
from tfcompress.export.flatbuffer.editing import op_code, op_name
from tfcompress.export.options import FileOptions
from tfcompress.export.runtime.delegation import node_names_outside, silenced_stderr
from tfcompress.export.steps.convert import convert
from tfcompress.export.steps.prepare import DEFAULT_SIGNATURE, Signature, output_names
from tfcompress.export.steps.write_exact import write_exact
from tfcompress.model.graph import Graph, is_functional
from tfcompress.model.keras_private import all_layers
from tfcompress.model.rewrite import as_float32
from tfcompress.model.subclassed import functional_for
from tfcompress.quantization.calibration.ranges import calibrate
from tfcompress.quantization.config import QuantizationConfig
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.placement.advice import instead_of
from tfcompress.quantization.quantize import quantize
from tfcompress.quantization.schemes import Scheme
from tfcompress.tables import Printable, render_table

_INT8_FORM = "an operation that has an int8 form; tfc.plan says why this has none"
# Milliseconds for which one operator is run.
_BUDGET_MS = 20.0


@dataclasses.dataclass(frozen=True)
class LintEntry:
    """One operator of the file that runs slowly: XNNPACK leaves it out, or it is in float.

    Attributes:
        layer: The Keras layer that it comes from; empty where it is not known.
        operator: LiteRT's name of it.
        is_float: Whether it computes in float.
        milliseconds: What it takes by itself on this machine, one thread; `None` not measured.
        instead: What to use in its place.
    """

    layer: str
    operator: str
    is_float: bool
    milliseconds: float | None
    instead: str


@dataclasses.dataclass(frozen=True)
class LintReport(Printable):
    """What `lint` found, printable. Iterating gives its entries.

    Attributes:
        model: Name of the model.
        entries: The operators outside XNNPACK or in float, in running order.
        num_operators: How many operators the file has.
        milliseconds: What the whole file takes on this machine, one thread; `None` not measured.
    """

    model: str
    entries: tuple[LintEntry, ...]
    num_operators: int
    milliseconds: float | None

    def __iter__(self) -> Any:
        return iter(self.entries)

    def __str__(self) -> str:
        if not self.entries:
            return f"XNNPACK takes all {self.num_operators} operators of {self.model} in int8.\n"
        rows = [
            (e.layer, e.operator + (" in float" if e.is_float else ""), _shown(e), e.instead)
            for e in self.entries
        ]
        title = f"Operators of {self.model} outside XNNPACK or in float"
        columns = ("layer", "operator", "ms by itself", "use instead")
        text = render_table(title, columns, rows)
        text += f"{len(self.entries)} of {self.num_operators} operators"
        known = [e.milliseconds for e in self.entries if e.milliseconds is not None]
        if self.milliseconds is not None:
            text += f", {sum(known):.3f} ms by themselves; the whole file takes "
            text += f"{self.milliseconds:.3f} ms on this machine, one thread"
        return text + ".\n"


def _shown(entry: LintEntry) -> str:
    return "" if entry.milliseconds is None else f"{entry.milliseconds:.4f}"


def lint(
    model: keras.Model,
    config: QuantizationConfig | Scheme | str = "int8",
    *,
    measure: bool = True,
) -> LintReport:
    """Names the operators that leave XNNPACK, which runs int8 models on a phone's CPU, or int8.

    Call it before training: the model is quantized on random numbers, converted, and the file is
    loaded with XNNPACK. The weights hardly matter. Every operator that XNNPACK leaves
    to the interpreter ends a partition and runs on slower kernels.

    Args:
        model: A float model, trained or not, or a quantized one.
        config: Of the quantization, for a float model.
        measure: Whether to time each operator found, in a file of its own, and the whole file.
            The times are those of this machine, with one thread.

    Returns:
        The report. Print it.

    Raises:
        ValueError: As `quantize`; an input of unknown size.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "softmax")])
        >>> [entry.operator for entry in tfc.lint(model, measure=False)]
        ['SOFTMAX']
    """
    data = _file(_ready(model, config))
    return lint_file(data, _layers(model), model.name, measure=measure)


def lint_file(data: bytes, layers: list[str], name: str, *, measure: bool) -> LintReport:
    """`lint` of a file.

    Args:
        data: The file, of one signature.
        layers: Names of the Keras layers that its tensors may come from.
        name: Of the model.
        measure: As for `lint`.
    """
    with silenced_stderr():
        outside = dict(node_names_outside(data))
        tree = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
        graph = tree.subgraphs[0]
        entries = []
        for index, op in enumerate(graph.operators):
            operator = op_name(op_code(tree, op))
            if outside.get(index, operator) != operator:
                raise RuntimeError(
                    f"Expected operator {index} of the file to be {operator}. Received: "
                    f"{outside[index]}."
                )
            tensors = [graph.tensors[t] for t in (*op.outputs, *op.inputs) if t >= 0]
            is_float = any(
                t.type == schema.TensorType.FLOAT32 for t in tensors
            ) and operator not in ("QUANTIZE", "DEQUANTIZE")
            if index not in outside and not is_float:
                continue
            took = _milliseconds(_single(tree, index)) if measure else None
            instead = _INT8_FORM if is_float else instead_of(operator)
            if any(t.type == schema.TensorType.INT16 for t in tensors) and not is_float:
                instead = 'activations of 8 bits: the configuration "int8"'
            entries.append(LintEntry(_origin(tensors, layers), operator, is_float, took, instead))
        total = _milliseconds(data) if measure and entries else None
    return LintReport(name, tuple(entries), len(graph.operators), total)


def _ready(model: keras.Model, config: Any) -> keras.Model:
    """The quantized float32 model; unknown ranges become those of random numbers."""
    model = functional_for(model)
    operations = Graph.from_model(model).operations() if is_functional(model) else ()
    with warnings.catch_warnings():
        # Ranges of random numbers are of no interest, and floats are in the report.
        warnings.simplefilter("ignore")
        if not any(isinstance(operation, FakeQuantize) for operation in operations):
            return as_float32(quantize(model, config, calibration_data=_random(model)))
        ready = as_float32(model)
        missing = missing_ranges(ready)
        if missing:
            calibrate(ready, [_random(ready)], only=missing)
        return ready


def _random(model: keras.Model) -> Any:
    rng = np.random.default_rng(0)

    def draw(tensor: keras.KerasTensor) -> np.ndarray:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"Expected inputs of known size. Received: {tensor.name!r} of shape "
                f"{tuple(tensor.shape)}."
            )
        shape = (2, *tensor.shape[1:])
        if keras.backend.is_float_dtype(tensor.dtype):
            return rng.normal(size=shape).astype("float32")
        return rng.integers(0, 2, shape).astype(tensor.dtype)

    values = [draw(tensor) for tensor in model.inputs]
    return values[0] if len(values) == 1 else values


def _file(ready: keras.Model) -> bytes:
    options = FileOptions(allow_float=True)
    signatures = (Signature(DEFAULT_SIGNATURE, ready, output_names(ready), None),)
    with current_converter() as converter:
        return write_exact(signatures, convert(signatures, converter, options), options).data


def _layers(model: keras.Model) -> list[str]:
    return [layer.name for layer in all_layers(model)[1:]]


def _origin(tensors: list, layers: list[str]) -> str:
    """The layer of the first tensor whose name has one: longest names first."""
    known = sorted(layers, key=len, reverse=True)
    for tensor in tensors:
        given = tensor.name or b""
        name = given.decode("utf-8", "replace") if isinstance(given, bytes) else str(given)
        for part in re.split("[/;]", name):
            for layer in known:
                if part == layer or part.startswith(f"{layer}_"):
                    return layer
            if re.fullmatch(r"[a-z0-9_]+", part) and not part.startswith("partitioned"):
                return part
    return ""


def _single(tree: schema.ModelT, index: int) -> bytes:
    """A file of one operator."""
    single = copy.copy(tree)
    graph = copy.copy(tree.subgraphs[0])
    op = graph.operators[index]
    constants = {t for t in op.inputs if t >= 0 and len(_data(tree, graph.tensors[t])) > 0}
    graph.operators = [op]
    graph.inputs = [t for t in dict.fromkeys(op.inputs) if t >= 0 and t not in constants]
    graph.outputs = list(op.outputs)
    single.subgraphs, single.signatureDefs = [graph], []
    return bytes(flatbuffer_utils.convert_object_to_bytearray(single))


def _data(tree: schema.ModelT, tensor: schema.TensorT) -> Any:
    data = tree.buffers[tensor.buffer].data
    return () if data is None else data


def _milliseconds(data: bytes) -> float | None:
    """Median time of a run, one thread; `None` where it does not run by itself."""
    try:
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        interpreter.invoke()
    except Exception:
        return None
    times: list[float] = []
    end = time.perf_counter() + _BUDGET_MS / 1e3
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 1000):
        start = time.perf_counter()
        interpreter.invoke()
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))
