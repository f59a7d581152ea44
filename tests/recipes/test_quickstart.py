"""The README's first command: its one `fit` that prunes, quantizes and distills."""

import numpy as np

from recipes import models, quickstart
from tfcompress.tools import datasets


def test_copy_is_quantized_pruned_and_apart_from_its_teacher(monkeypatch):
    monkeypatch.setattr(quickstart, "_EPOCHS", 2)
    (x, y), _ = datasets.load("digits")
    model = models.build("digits_cnn", x.shape[1:], 10)
    before = model.get_weights()
    student = quickstart.compressed(model, (x[:320], y[:320]), 0.6)
    zeros, size = (
        sum(f(layer.kernel) for layer in student.layers if hasattr(layer, "kernel"))
        for f in (lambda k: int(np.sum(k.numpy() == 0)), lambda k: int(np.prod(k.shape)))
    )
    assert zeros == round(0.6 * size)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
