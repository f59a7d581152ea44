"""Memory of a process that exports again and again."""

import gc

import keras
import numpy as np

import tfcompress as tfc
from benchmarks.memory import memory

_WARM, _COUNT = 3, 6


def test_memory_of_many_exports_stays_flat(tmp_path):
    """An export that kept its kernel once would take `_COUNT` times that."""
    inputs = keras.Input((1024,))
    model = keras.Model(inputs, keras.layers.Dense(1024)(inputs))
    data = np.random.default_rng(0).uniform(-1, 1, (16, 1024)).astype("float32")
    quantized = tfc.quantize(model, calibration_data=data)
    kernel = 1024 * 1024 * 4 / 1e6
    found = []
    with tfc.shared_converter():
        for _ in range(_WARM + _COUNT):
            tfc.export_tflite(quantized, tmp_path / "model.tflite", verify_samples=0)
            gc.collect()
            found.append(memory())
    assert found[-1] - found[_WARM - 1] < _COUNT * kernel / 2, found
