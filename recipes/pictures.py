"""Draws the pictures of the documentation, from the package's own code and from measured rows.

    python -m recipes.pictures

writes four SVG files to `docs/pictures/`: quantizers with their gradients, a sparsity schedule, a
dependency group, and accuracy against size.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfcompress as tfc
from recipes.results import grouped
from recipes.table_kinds import rows_of
from recipes.tables import ROOT

_BLUE, _ORANGE, _GRAY = "#1f77b4", "#d95f02", "#999999"


def quantizers(axes) -> None:
    """Rows: values and gradients. Columns: one quantizer each, of 2 or 3 bits."""
    x = np.linspace(-1, 1, 1001).astype("float32")
    columns: Mapping[str, Callable] = {
        "weights, 3 bits": _weights(tfc.UniformWeights(), 3),
        "ternary": _weights(tfc.TernaryWeights(), 2),
        "power of two, 3 bits": _weights(tfc.PowerOfTwoWeights(), 3),
        "activations, 3 bits": _activations(tfc.ActivationScheme(3), 0.0, 0.7),
        "PACT, 3 bits": _activations(tfc.ActivationScheme(3, quantizer=tfc.PACT()), 0.0, 0.7),
    }
    for (title, function), column in zip(columns.items(), axes.T, strict=True):
        value = tf.Variable(x)
        with tf.GradientTape() as tape:
            result = function(value)
        gradient = tape.gradient(result, value).numpy()
        above, below = column
        above.plot(x, x, color=_GRAY, linewidth=0.8, linestyle=":")
        above.plot(x, result.numpy(), color=_BLUE)
        above.set_title(title, fontsize=9)
        below.plot(x, np.clip(gradient, -0.2, 1.6), color=_ORANGE)
        below.set(ylim=(-0.2, 1.6), xlabel="x")
    axes[0, 0].set_ylabel("value")
    axes[1, 0].set_ylabel("gradient")


def _weights(quantizer: tfc.WeightQuantizer, bits: int) -> Callable:
    """The quantizer, fitted to weights between −1 and 1."""
    options = tfc.WeightScheme(bits, quantizer=quantizer)
    seen = np.linspace(-1, 1, 1001).astype("float32")[:, None]
    grid = tfc.KernelGrid(options, seen.shape, (1,), True)
    state = {
        name: keras.Variable(np.full(spec.shape, spec.initial), dtype="float32")
        for name, spec in quantizer.variables(grid).items()
    }
    for name, value in quantizer.fit(seen, grid).items():
        state[name].assign(value)

    def apply(x: tf.Tensor) -> tf.Tensor:
        # The weights that were fitted stand beside those that are drawn, so that the scale stays.
        both = tf.concat([x[:, None], seen], axis=0)
        wide = tfc.KernelGrid(options, tuple(both.shape), (1,), True)
        values, _ = quantizer.quantize(both, state, wide, True)
        return values[: x.shape[0], 0]

    return apply


def _activations(scheme: tfc.ActivationScheme, low: float, high: float) -> Callable:
    quantizer = scheme.quantizer
    state = quantizer.from_range(tf.constant(low), tf.constant(high), scheme)
    scale, zero_point = quantizer.parameters(state, scheme)
    return lambda x: quantizer.quantize_known(x + 0.0, scale, zero_point, scale, scheme, False)


def schedule(axes) -> None:
    """Three schedules, and the steps at which masks are made."""
    steps = np.arange(0, 1001)
    options = {"begin_step": 100, "end_step": 800, "frequency": 100}
    lines = {
        "PolynomialDecay(0.0, 0.8, power=3)": tfc.PolynomialDecay(0.0, 0.8, **options),
        "PolynomialDecay(0.0, 0.8, power=1)": tfc.PolynomialDecay(0.0, 0.8, power=1, **options),
        "ConstantSparsity(0.8)": tfc.ConstantSparsity(0.8, **options),
    }
    for (label, line), color in zip(lines.items(), (_BLUE, _ORANGE, _GRAY), strict=True):
        inside = [s for s in steps if 100 <= s <= 800]
        axes.plot(inside, [line.sparsity(s) for s in inside], color=color, label=label)
        updates = [s for s in steps if line(s)[0]]
        axes.plot(updates, [line.sparsity(s) for s in updates], "o", color=color, markersize=4)
    axes.set(xlabel="optimizer step", ylabel="sparsity", xlim=(0, 1000), ylim=(0, 1))
    axes.legend(fontsize=8, loc="lower right")


def dependency(axes) -> None:
    """The group of a residual addition, as `Dependencies` finds it."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="stem")(inputs)
    y = keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="inner")(x)
    y = keras.layers.Conv2D(32, 3, padding="same", name="outer")(y)
    x = keras.layers.Add(name="add")([x, y])
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="logits")(x))
    group = next(g for g in tfc.Dependencies(model).groups if "outer" in g.name)
    lost: dict[str, list[str]] = {}
    for place in group.places:
        member = place.member
        rank = len(member.variable.shape)
        index = ", ".join("j" if i == member.axis else ":" for i in range(rank))
        lost.setdefault(member.layer.name, []).append(f"{member.variable.name}[{index}]")
    places = {"stem": (0, 3), "inner": (1, 3), "outer": (2, 3), "add": (3, 2), "pool": (4, 2)}
    places["logits"] = (5, 2)
    passed = {node.name for node in group.calls}
    arrows = [("stem", "inner"), ("inner", "outer"), ("outer", "add"), ("add", "pool")]
    for start, end in [*arrows, ("pool", "logits"), ("stem", "add")]:
        (x0, y0), (x1, y1) = places[start], places[end]
        bend = "arc3,rad=0.35" if (start, end) == ("stem", "add") else "arc3"
        axes.annotate(
            "",
            (2 * x1 - 0.62, y1),
            (2 * x0 + 0.62, y0),
            arrowprops={"arrowstyle": "->", "color": _GRAY, "connectionstyle": bend},
        )
    for name, (column, row) in places.items():
        color = _ORANGE if name in lost else _BLUE if name in passed else "white"
        text = "\n".join([name, *lost.get(name, [])])
        axes.text(
            2 * column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=7,
            color="white" if color != "white" else "black",
            bbox={"boxstyle": "round", "facecolor": color, "edgecolor": _GRAY},
        )
    axes.set(xlim=(-1.2, 11.2), ylim=(0.8, 4))
    axes.set_title("orange: loses index j · blue: passes channel j on", fontsize=9)
    axes.axis("off")


def accuracy_against_size(axes) -> None:
    """ResNet-8 on CIFAR-10 (JPEG Q75): files of quantization, clustering, and of all in one fit."""
    files = rows_of("quantize", {"dataset": ["cifar10"]})
    points = [
        ("float", _of(files, "variant", "float"), "tflite_accuracy"),
        ("int8, calibrated", _of(files, "variant", "int8_calibration"), "tflite_accuracy"),
        ("int8, trained", _of(files, "variant", "int8_training"), "tflite_accuracy"),
    ]
    clustered = rows_of("cluster", {})
    for name in ("int8, 32", "int8, 16", "tfmot, 32", "tfmot, 16"):
        points.append((f"{name} values", _of(clustered, "variant", name), "accuracy"))
    composed = rows_of("compose", {})
    for name, title in (("alone", "50 % zeros, 16 values, int8"), ("taught", "the same, taught")):
        points.append((title, _of(composed, "variant", name), "litert"))
    for index, (label, rows, column) in enumerate(points):
        size = np.mean([float(row["gzip_bytes"]) for row in rows]) / 1000
        values = [float(row[column]) for row in rows]
        axes.errorbar(
            size,
            np.mean(values),
            yerr=np.std(values, ddof=1) if len(values) > 1 else None,
            marker="osv^D<>ph"[index],
            linestyle="",
            color=_GRAY if "tfmot" in label else _ORANGE if column == "litert" else _BLUE,
            label=f"{label} ({size:.0f} kB)",
        )
    axes.set(
        xscale="log", xlabel="bytes of the file under gzip, kB", ylabel="accuracy of the file, %"
    )
    axes.set_xticks([40, 60, 80, 100, 200, 300], ["40", "60", "80", "100", "200", "300"])
    axes.minorticks_off()
    axes.legend(fontsize=7)


def _of(rows, column: str, value: str) -> list:
    return grouped(rows, (column,))[(value,)]


#: Name → function that draws it, rows and columns of axes, inches.
PICTURES: dict[str, tuple[Callable, tuple[int, int], tuple[float, float]]] = {
    "quantizers": (quantizers, (2, 5), (10, 4)),
    "schedule": (schedule, (1, 1), (6, 3)),
    "dependency": (dependency, (1, 1), (10, 2.2)),
    "accuracy-size": (accuracy_against_size, (1, 1), (7, 4)),
}


def draw(name: str, path: pathlib.Path) -> None:
    """Draws one picture into an SVG file; the same file from the same code and rows."""
    import matplotlib
    from matplotlib.figure import Figure

    function, shape, size = PICTURES[name]
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure = Figure(figsize=size, layout="constrained")
        function(figure.subplots(*shape, sharex=name == "quantizers"))
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    folder = pathlib.Path(flags.FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        draw(name, folder / f"{name}.svg")
        print(f"Written: {folder / name}.svg")


if __name__ == "__main__":
    flags.DEFINE_string("output", str(ROOT / "docs" / "pictures"), "Where the pictures go.")
    app.run(main)
