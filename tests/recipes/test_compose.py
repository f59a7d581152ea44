"""Everything in one fit, on a few images: zeros, codes and agreement come out of the file."""

import types

import keras
import numpy as np
from keras import layers

from recipes import compose
from recipes.results import Results


def test_one_fit_with_and_without_a_teacher(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (256, 32, 32, 3)).astype("float32")
    y = (np.arange(256) % 10).astype("int32")
    image = keras.Input((32, 32, 3))
    features = layers.Conv2D(8, 3, strides=4, use_bias=False, name="conv")(image)
    features = layers.Flatten()(layers.ReLU()(layers.BatchNormalization()(features)))
    teacher = keras.Model(image, layers.Dense(10, name="logits")(features))
    settings = types.SimpleNamespace(seeds=["0"], epochs=3)
    results = Results(tmp_path / "compose.csv", compose.KEY)
    compose.run(settings, results, ((x, y), (x[:64], y[:64])), teacher)
    rows = results.rows
    assert [row["variant"] for row in rows] == ["alone", "taught"]
    for row in rows:
        assert float(row["lost_zeros"]) == 0
        assert float(row["zeros"]) >= 49
        assert float(row["codes"]) <= compose.NUM_CLUSTERS
        assert float(row["equal"]) >= 99
    compose.run(settings, results, ((x, y), (x[:64], y[:64])), teacher)
    assert results.rows == rows
    assert "taught" in compose.table(rows)
