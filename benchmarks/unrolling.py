"""What a recurrent layer in int8 costs in training, against the float Keras layer.

    python -m benchmarks.unrolling

For an LSTM and a GRU of 16 to 128 steps: CPU seconds of `quantize`, of the first train step
(which traces the graph) and of a later one, the median of interleaved rounds.
Rows go to `unrolling.csv` in `--output`; what is there already is not run again.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags
from keras import layers

import tfcompress as tfc
from benchmarks.nets import commit
from benchmarks.tasks import table
from recipes.results import Results

_STEPS = flags.DEFINE_list("steps", ["16", "32", "64", "128"], "Lengths of the sequences.")
_LAYERS = flags.DEFINE_list("layers", ["LSTM", "GRU"], "Recurrent layers.")
_BATCH, _BANDS, _UNITS, _ROUNDS = 64, 20, 48, 7


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def measure(layer: str, steps: int) -> dict[str, Any]:
    """The figures of a row."""
    inputs = keras.Input((steps, _BANDS), name="x")
    hidden = getattr(layers, layer)(_UNITS)(inputs)
    model = keras.Model(inputs, layers.Dense(10, name="logits")(hidden))
    random = np.random.default_rng(0)
    x = random.normal(size=(_BATCH, steps, _BANDS)).astype(np.float32)
    y = random.integers(0, 10, _BATCH)
    quantize = lambda: tfc.quantize(model, calibration_data=x, bias_correction=False)  # noqa: E731
    seconds, quantized = _timed(quantize)
    candidates, first, later = {"float": model, "quantized": quantized}, {}, {}
    for name, candidate in candidates.items():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        candidate.compile(keras.optimizers.SGD(1e-3), loss)
        first[name], _ = _timed(lambda c=candidate: c.train_on_batch(x, y))
        later[name] = []
    for _ in range(_ROUNDS):
        for name, candidate in candidates.items():
            later[name].append(_timed(lambda c=candidate: c.train_on_batch(x, y))[0])
    median = {name: float(np.median(values)) for name, values in later.items()}
    return {
        "quantize": f"{seconds:.1f}",
        "first_step": f"{first['quantized']:.1f}",
        "first_float": f"{first['float']:.1f}",
        "step": f"{median['quantized']:.3f}",
        "step_float": f"{median['float']:.3f}",
        "ratio": f"{median['quantized'] / median['float']:.1f}",
        "commit": commit(),
    }


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    results = Results(pathlib.Path(flags.FLAGS.output) / "unrolling.csv", ("layer", "steps"))
    for layer in _LAYERS.value:
        for steps in _STEPS.value:
            if not results.has(layer=layer, steps=steps):
                found = measure(layer, int(steps))
                results.add(layer=layer, steps=steps, **found)
                print(layer, steps, found, flush=True)
    if flags.FLAGS.output == str(table.RESULTS):
        table.PAGE.write_text(table.page(), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
