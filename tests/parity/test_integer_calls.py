"""Calls on integers alone, such as positions of tokens, stay what they are."""

import keras
import numpy as np
from keras import layers, ops

import tfcompress as tfc

TOKENS = np.random.default_rng(0).integers(0, 9, (64, 6)).astype(np.int32)
CALLS = {
    "sort": lambda t: ops.sort(t, axis=1),
    "prod": lambda t: ops.prod(t[:, :3] % 2 + 1, axis=1, keepdims=True) + t * 0,
    "square": lambda t: ops.square(t) % 9,
    "arithmetic": lambda t: (t * 2 + 1 - 1) // 2,
    "cumsum": lambda t: ops.cumsum(t, axis=1) % 9,
    "clip": lambda t: ops.clip(t, 1, 5),
    "maximum": lambda t: ops.maximum(t, 2),
    "where": lambda t: ops.where(t > 3, t, 0),
    "abs": lambda t: ops.abs(-t),
    "sum": lambda t: ops.sum(t, axis=1, keepdims=True) % 9 + t * 0,
}


def test_integers_are_computed_as_in_keras(tmp_path, converter):
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    embedding = layers.Embedding(10, 4)
    outputs = {name: layers.Dense(3)(embedding(call(tokens))) for name, call in CALLS.items()}
    model = keras.Model(tokens, outputs)
    assert not tfc.plan(model).refused_floats
    quantized = tfc.quantize(model, calibration_data=TOKENS)
    path = tmp_path / "m.tflite"
    report = tfc.export_tflite(quantized, path, verify_data=TOKENS)
    assert report.agreement == 1.0
    assert not report.float_tensors
    found, wanted = tfc.Runner(path).predict(TOKENS), model(TOKENS)
    for name in CALLS:
        largest = np.abs(wanted[name]).max()
        np.testing.assert_allclose(found[name], wanted[name], atol=0.05 * largest)
