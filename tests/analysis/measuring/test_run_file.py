"""A `.tflite` on samples, beside the model that it was made of."""

import types

import keras
import numpy as np
import pytest

from tfcompress.analysis.measuring import files


def test_a_file_of_another_model_is_named(monkeypatch):
    runner = types.SimpleNamespace(input_names=["x"], predict=lambda inputs: {"lo\x00its": inputs})
    monkeypatch.setattr(files, "Runner", lambda path: runner)
    inputs = keras.Input((2,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(inputs), name="net")
    samples = types.SimpleNamespace(inputs=np.zeros((1, 2), np.float32))
    with pytest.raises(
        ValueError, match=r"^Expected .*'net': logits. Received: 'a.tflite' with lo"
    ):
        files.run_file("a.tflite", model, samples)
