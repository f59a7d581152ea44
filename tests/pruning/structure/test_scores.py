"""Channel criteria against NumPy."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from keras import layers

from tests.pruning.structure.oracle import randomize, sample
from tfcompress.pruning.criteria.functions import geometric_median
from tfcompress.pruning.criteria.options import ScoringOptions
from tfcompress.pruning.structure import Dependencies
from tfcompress.pruning.structure.options import NORMALIZATIONS, REDUCTIONS, WidthOptions
from tfcompress.pruning.structure.scores import Scoring
from tfcompress.pruning.structure.units import Units


@pytest.fixture(scope="module")
def model():
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(5, 3, name="conv")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    model = keras.Model(image, layers.Dense(3)(layers.Flatten()(x)))
    randomize(model)
    return model


def scores(model, **options):
    (found,) = Scoring(widths=WidthOptions(normalization=None), **options).scores(
        Dependencies(model)
    )
    return found


def test_against_numpy(model):
    x = sample(model, 40)[0]
    data = {"data": (x, np.zeros(40)), "options": ScoringOptions(batch_size=10, num_batches=4)}
    read = np.asarray(keras.Model(model.inputs[0], model.get_layer("relu").output)(x))
    kernel = np.asarray(model.get_layer("conv").kernel)
    close = np.testing.assert_allclose
    close(scores(model), np.abs(kernel).sum((0, 1, 2)), rtol=1e-6)
    gamma = np.abs(np.asarray(model.get_layer("norm").gamma))
    close(scores(model, criterion="batch_norm_scale"), gamma)
    close(scores(model, criterion="activation_mean", **data), read.mean((0, 1, 2)), rtol=1e-5)
    spread = kernel.reshape(-1, 5).std(0)
    close(scores(model, criterion=lambda weights: weights.std(1)), spread, rtol=1e-5)
    apoz = (read == 0).mean((0, 1, 2))
    close(scores(model, criterion="apoz", **data), 1 - apoz, rtol=1e-5)
    assert 0.1 < apoz.mean() < 0.9
    means = read.mean((1, 2))
    for channel, score in enumerate(scores(model, criterion="activation_entropy", **data)):
        counts, _ = np.histogram(means[:, channel], 32)
        p = counts[counts > 0] / 40
        assert score == pytest.approx(-(p * np.log(p)).sum(), rel=0.05)


def test_a_criterion_of_channels_gives_one_score_per_channel(model):
    with pytest.raises(ValueError, match=r"expected shape \(5,\) for conv. Received: shape \(5,"):
        scores(model, criterion=lambda weights: weights)


def test_batches_in_the_forms_that_fit_takes():
    """By name in any order, of another type, without the last axis of one."""
    image, vector = keras.Input((6, 6, 1), name="z_image"), keras.Input((4,), name="a_vector")
    x = layers.Flatten()(layers.Conv2D(5, 3, activation="relu")(image))
    x = layers.Concatenate()([x, layers.Dense(6, "relu")(vector)])
    both = keras.Model([image, vector], layers.Dense(2)(x))
    rng, dependencies = np.random.default_rng(0), Dependencies(both)
    images, vectors = rng.integers(0, 255, (16, 6, 6)).astype("uint8"), rng.normal(size=(16, 4))

    def by(x):
        return Scoring("activation_mean", data=(x, np.zeros(16))).scores(dependencies)

    expected = by([images[..., None].astype("float32"), vectors.astype("float32")])
    for received in (by({"z_image": images, "a_vector": vectors}), by([images, vectors])):
        for a, b in zip(expected, received, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


@given(arrays.arrays(np.float64, (6, 4), elements=st.floats(-5, 5)))
def test_geometric_median(rows):
    expected = [sum(np.linalg.norm(a - b) for b in rows) for a in rows]
    np.testing.assert_allclose(geometric_median(rows), expected, atol=1e-5)


@given(arrays.arrays(np.float64, (3, 7), elements=st.floats(0, 10)))
def test_reductions_and_normalizations_keep_the_order(values):
    for reduce in REDUCTIONS.values():
        reduced = reduce(values)
        assert reduced.shape == (7,)
        for normalize in NORMALIZATIONS.values():
            normal = normalize(reduced)
            assert np.isfinite(normal).all()
            i, j = np.argmin(reduced), np.argmax(reduced)
            assert normal[i] <= normal[j]


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12), st.integers(0, 11))
def test_units_join_like_sets(pairs, pinned):
    units = Units()
    labels = units.new(12)
    sets = [{i} for i in range(12)]
    units.pin(labels[[pinned]], "because")
    for a, b in pairs:
        units.join(labels[[a]], labels[[b]])
        merged = sets[a] | sets[b]
        for i in merged:
            sets[i] = merged
    roots = units.find(labels)
    for i in range(12):
        assert {j for j in range(12) if roots[j] == roots[i]} == sets[i]
        assert (units.reason(i) == "because") == (pinned in sets[i])
