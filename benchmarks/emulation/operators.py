"""Instructions of single operators on an ARM CPU: files of one operator, and of several in a row.

The shapes are those of small networks. Operators in a row tell what an operator costs from what a
run costs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
from keras import layers
from scipy.optimize import nnls

import tfcompress as tfc
from benchmarks.emulation.emulator import Emulator
from recipes.results import Results
from tfcompress.analysis.costs.instructions import MULTIPLIED_AT_ONCE, TABLE, Terms, operator_terms
from tfcompress.export.flatbuffer.inspect import inspect_tflite

__all__ = ["CPUS", "TABLE", "count", "prices"]

#: The CPUs of the table.
CPUS = list(MULTIPLIED_AT_ONCE)


@dataclasses.dataclass(frozen=True)
class Part:
    """A file to run.

    Attributes:
        kind: What it is for.
        name: Kind, shapes, and how many operators there are in a row.
        make: Builds the float model.
        scheme: How it is quantized.
    """

    kind: str
    name: str
    make: Callable[[], keras.Model]
    scheme: str = "int8"


def parts() -> list[Part]:
    """All files."""
    found = [
        *(_conv(*case, kernel=(1, 1)) for case in _POINTWISE),
        *(_conv(*case) for case in _CONVOLUTIONS),
        *(_conv(*case, kernel=(1, 1), scheme=s) for s in _PACKED for case in _POINTWISE),
        *(_conv(*case, scheme=s) for s in _PACKED for case in _CONVOLUTIONS[3:5]),
        *(_depthwise(*case) for case in _DEPTHWISE),
        *(_dense(*case, scheme) for scheme in ("int8", "int4", "w2a8") for case in _DENSE),
    ]
    for kind, (shapes, call) in _OTHERS.items():
        found += [_other(kind, shape, repeats, call) for shape, repeats in shapes]
    return found


# Packed weights of many positions; behind patches where the kernel is larger than 1×1.
_PACKED = ("int4-packed", "int2-packed")
# Height and width, channels in and out, how many in a row.
_POINTWISE = (
    *((14, 32, 64, 1), (7, 96, 160, 1), (24, 8, 48, 1), (12, 96, 24, 1), (10, 64, 64, 1)),
    *((4, 128, 128, 1), (4, 320, 64, 1), (12, 16, 16, 1), (12, 16, 16, 5), (6, 64, 64, 4)),
    *((3, 160, 960, 1), (3, 960, 160, 1), (25, 64, 64, 1)),
)
# The same, then the kernel and the stride.
_CONVOLUTIONS = (
    *((32, 3, 16, 1, (3, 3), 1), (16, 16, 16, 1, (3, 3), 1), (16, 16, 16, 4, (3, 3), 1)),
    *((8, 32, 32, 1, (3, 3), 1), (16, 32, 64, 1, (3, 3), 2), (12, 8, 24, 1, (5, 5), 1)),
    *((48, 3, 32, 1, (3, 3), 2), (4, 64, 64, 1, (3, 3), 1), (24, 1, 64, 1, (10, 4), 2)),
)
# Height and width, channels, how many in a row, the kernel's size, the stride.
_DEPTHWISE = (
    *((24, 48, 1, 3, 1), (12, 96, 1, 3, 1), (6, 384, 1, 3, 1), (12, 144, 1, 3, 2)),
    *((8, 16, 1, 3, 1), (8, 16, 6, 3, 1), (12, 64, 1, 5, 1), (6, 96, 1, 5, 2), (24, 64, 1, 3, 1)),
)
# Inputs, units, how many in a row.
_DENSE = (
    *((784, 304, 1), (304, 104, 1), (64, 64, 1), (64, 64, 6), (128, 640, 1), (640, 128, 1)),
    *((16, 16, 1), (256, 256, 3)),
)


def _add(x: keras.KerasTensor, y: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Add()([x, y])


def _multiply(x: keras.KerasTensor, y: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Multiply()([x, y])


def _scale(x: keras.KerasTensor, y: keras.KerasTensor) -> keras.KerasTensor:
    return x * layers.GlobalAveragePooling2D(keepdims=True)(y)


def _product(x: keras.KerasTensor, y: keras.KerasTensor) -> keras.KerasTensor:
    return keras.ops.matmul(x, keras.ops.transpose(y, (0, 1, 3, 2)))


def _after_sum(call: Callable) -> Callable:
    """The same behind a sum, for what computes nothing and has no int8 file of its own."""
    return lambda x, y: call(layers.Add()([x, y]))


_SMALL, _MIDDLE, _LARGE = (8, 8, 16), (16, 16, 32), (24, 24, 64)
_ALONE = ((_SMALL, 1), (_MIDDLE, 1), (_LARGE, 1))
_ROW = (*_ALONE, (_SMALL, 6))
#: Kind → `((shape, how many in a row) ..., function of two tensors of the shape)`.
_OTHERS: dict[str, tuple[Sequence, Callable]] = {
    "ADD": (_ROW, _add),
    "SUB": (_ALONE, lambda x, y: x - y),
    "MUL": (_ROW, _multiply),
    # In a row XNNPACK would make them one table.
    "MUL, a number": (_ALONE, lambda x, y: x * 0.7),
    "MUL, a row": (_ALONE, _scale),
    "DEPTHWISE_CONV_2D, 2x2": (_ALONE, lambda x, y: layers.AveragePooling2D(2)(x)),
    "MAX_POOL_2D": (_ALONE, _after_sum(layers.MaxPooling2D(2))),
    "MEAN": (
        ((_SMALL, 1), ((8, 8, 64), 1), ((12, 12, 128), 1), ((3, 3, 1280), 1), ((25, 5, 64), 1)),
        lambda x, y: layers.GlobalAveragePooling2D()(x),
    ),
    "SUM": (_ALONE, lambda x, y: keras.ops.sum(x, axis=(1, 2))),
    "PAD": (_ALONE, _after_sum(layers.ZeroPadding2D(1))),
    "CONCATENATION": (_ALONE, lambda x, y: layers.Concatenate()([x, y])),
    "STRIDED_SLICE": (_ALONE, _after_sum(layers.Cropping2D(1))),
    "RESHAPE": (_ALONE, _after_sum(layers.Reshape((-1,)))),
    "TRANSPOSE": (_ALONE, _after_sum(layers.Permute((2, 3, 1)))),
    "RESIZE_BILINEAR": (_ALONE, _after_sum(layers.UpSampling2D(2, interpolation="bilinear"))),
    "LOGISTIC": (_ALONE, lambda x, y: keras.ops.sigmoid(x)),
    "TANH": (_ALONE, lambda x, y: keras.ops.tanh(x)),
    "SOFTMAX": ((((10,), 1), ((100,), 1), ((1000,), 1)), lambda x, y: layers.Softmax()(x)),
    "BATCH_MATMUL": (_ALONE, _product),
    "TRANSPOSE_CONV": (_ALONE[:2], lambda x, y: layers.Conv2DTranspose(16, 3, 2, "same")(x)),
}


def _model(inputs: Sequence[keras.KerasTensor], output: keras.KerasTensor) -> keras.Model:
    """A model of those of two inputs that the output depends on."""
    try:
        one = keras.Model(inputs[0], output)
    except ValueError:
        return keras.Model(inputs, output)
    return one


def _conv(
    size: int,
    given: int,
    filters: int,
    repeats: int,
    kernel: tuple[int, int],
    stride: int = 1,
    scheme: str = "int8",
) -> Part:
    def make() -> keras.Model:
        x = inputs = keras.Input((size, size, given), name="x")
        for _ in range(repeats):
            x = layers.Conv2D(filters, kernel, stride, padding="same", activation="relu")(x)
        return keras.Model(inputs, x)

    kind = "CONV_2D 1x1" if kernel == (1, 1) else "CONV_2D"
    shapes = f"{size}x{size}x{given} to {filters}, {kernel[0]}x{kernel[1]}, stride {stride}"
    packed = "" if scheme == "int8" else f", {scheme}"
    return Part(kind, f"{kind}: {shapes}{packed}, {repeats} in a row", make, scheme)


def _depthwise(size: int, channels: int, repeats: int, kernel: int, stride: int) -> Part:
    def make() -> keras.Model:
        x = inputs = keras.Input((size, size, channels), name="x")
        for _ in range(repeats):
            x = layers.DepthwiseConv2D(kernel, stride, padding="same", activation="relu")(x)
        return keras.Model(inputs, x)

    shapes = f"{size}x{size}x{channels}, {kernel}x{kernel}, stride {stride}"
    return Part("DEPTHWISE_CONV_2D", f"DEPTHWISE_CONV_2D: {shapes}, {repeats} in a row", make)


def _dense(given: int, units: int, repeats: int, scheme: str) -> Part:
    def make() -> keras.Model:
        x = inputs = keras.Input((given,), name="x")
        for _ in range(repeats):
            x = layers.Dense(units, activation="relu")(x)
        return keras.Model(inputs, x)

    shapes = f"{given} to {units}, {scheme}, {repeats} in a row"
    return Part("FULLY_CONNECTED", f"FULLY_CONNECTED: {shapes}", make, scheme)


def _other(kind: str, shape: tuple[int, ...], repeats: int, call: Callable) -> Part:
    def make() -> keras.Model:
        x, y = inputs = [keras.Input(shape, name="x"), keras.Input(shape, name="y")]
        for _ in range(repeats):
            x = call(x, y)
        return _model(inputs, x)

    name = f"{kind}: {'x'.join(map(str, shape))}, {repeats} in a row"
    return Part(kind, name, make)


def write(part: Part, path: pathlib.Path) -> None:
    """Writes the file of a part."""
    keras.utils.set_random_seed(0)
    model = part.make()
    random = np.random.default_rng(0)
    data = {i.name: random.normal(size=(32, *i.shape[1:])).astype(np.float32) for i in model.inputs}
    quantized = tfc.quantize(model, part.scheme, calibration_data=data)
    with contextlib.redirect_stdout(io.StringIO()):
        tfc.export_tflite(quantized, path, verify_samples=0)


def count(
    emulator: Emulator, cpus: Sequence[str], results: Results, origin: Mapping[str, str]
) -> None:
    """Adds a row for each part and CPU that has none.

    Args:
        emulator: Counts.
        cpus: Names of CPUs.
        results: The rows.
        origin: Further columns: where the rows come from.
    """
    every = parts()
    wanted = {cpu: [p for p in every if not results.has(file=p.name, cpu=cpu)] for cpu in cpus}
    with tempfile.TemporaryDirectory() as name:
        files: dict[str, pathlib.Path] = {}
        for part in dict.fromkeys(part for found in wanted.values() for part in found):
            files[part.name] = pathlib.Path(name) / f"{len(files)}.tflite"
            write(part, files[part.name])
        for cpu, found in wanted.items():
            if not found:
                continue
            counts = emulator.instructions_of(cpu, [files[part.name] for part in found])
            for part, instructions in zip(found, counts, strict=True):
                summary = inspect_tflite(files[part.name])
                terms = total_terms(operator_terms(summary, MULTIPLIED_AT_ONCE[cpu]))
                row = {"file": part.name, "cpu": cpu, "terms": json.dumps(terms)}
                results.add(**row, instructions=instructions, **origin)
                print(cpu, part.name, f"{instructions:,}", flush=True)


def total_terms(terms: Sequence[Terms]) -> dict[str, dict[str, int]]:
    """Operator → term → how many in a whole file; `fixed` is the number of such operators."""
    total: dict[str, dict[str, int]] = {}
    for each in terms:
        mine = total.setdefault(each.kind, {})
        for name, number in {"fixed": 1, **each.counts}.items():
            mine[name] = mine.get(name, 0) + number
    return total


def prices(results: Results, cpu: str) -> dict[str, dict[str, float]]:
    """Operator → term → instructions, by non-negative least squares of the relative errors.

    Args:
        results: The rows.
        cpu: Of which CPU.
    """
    rows = [row for row in results.rows if row["cpu"] == cpu]
    totals = [{"run": {"fixed": 1}, **json.loads(row["terms"])} for row in rows]
    keys = list(dict.fromkeys((k, n) for t in totals for k, counts in t.items() for n in counts))
    matrix = np.array([[t.get(k, {}).get(n, 0) for k, n in keys] for t in totals], np.float64)
    counted = np.array([int(row["instructions"]) for row in rows], np.float64)
    scale = matrix.max(0)
    found = nnls(matrix / scale / counted[:, None], np.ones(len(rows)))[0] / scale
    errors = np.abs(matrix @ found / counted - 1)
    print(f"{cpu}: {len(rows)} files, mean error {errors.mean():.2%}, largest {errors.max():.2%}")
    for i in np.argsort(-errors)[:5]:
        print(f"    {rows[i]['file']}: {errors[i]:.2%}")
    table: dict[str, dict[str, float]] = {}
    for (kind, name), value in zip(keys, found, strict=True):
        table.setdefault(kind, {})[name] = float(f"{value:.5g}")
    return table
