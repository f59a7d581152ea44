"""What the float model gives on calibration data, to compare files with later on."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import tree

from tfcompress.model import inference
from tfcompress.model.graph import Graph, input_structure

# Samples, and numbers of their outputs together (64 MB), that are kept.
_MOST_SAMPLES, _MOST_VALUES = 128, 16 * 2**20
# Numbers that a batch holds at a time while the model runs: 64 MB.
_HELD_VALUES = 16 * 2**20
_BATCH = 32


def float_outputs(model: keras.Model, inputs: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """The flat outputs of a functional model, in inference, for the first of some samples.

    Args:
        model: A float model.
        inputs: One array per input of the model, in its order.

    Returns:
        One float32 array per output, of up to 128 samples: fewer where outputs are large. `None`
        for a model with an output that is no number.
    """
    graph = Graph.from_model(model)
    if any(value.spec.dtype == "string" for value in graph.flat_outputs):
        return None
    sizes = sum(inference.size(value) for value in graph.flat_outputs)
    most = max(1, min(_MOST_SAMPLES, _MOST_VALUES // max(1, sizes)))
    batch = tree.pack_sequence_as(input_structure(model), [x[:most] for x in inputs])
    rows = min(_BATCH, inference.rows_at_a_time(graph, _HELD_VALUES))
    parts = [inference.run(graph, part) for part in inference.split(batch, rows)]
    return [
        np.concatenate([np.asarray(y).astype(np.float32) for y in outputs])
        for outputs in zip(*parts, strict=True)
    ]
