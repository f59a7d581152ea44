"""Batches of recipes: every sample once, the same for a seed, no waiting at an epoch's end."""

import numpy as np
import pytest

from recipes.batches import AUGMENTATIONS, augmented, batches, shifted

X = np.arange(10 * 32 * 32 * 3, dtype=np.uint8).reshape(10, 32, 32, 3)
Y = np.arange(10)


def test_every_sample_once_and_the_same_for_a_seed():
    labels = [y.numpy() for _, y in batches(X, Y, seed=3, batch_size=5)]
    assert sorted(np.concatenate(labels)) == list(range(10))
    again = batches(X, Y, seed=3, batch_size=5)
    np.testing.assert_array_equal(np.concatenate([y for _, y in again]), np.concatenate(labels))


def test_a_last_batch_that_is_smaller_is_left_out():
    assert [len(y) for _, y in batches(X, Y, seed=3, batch_size=4)] == [4, 4]
    assert [len(y) for _, y in batches(X, Y, seed=3, batch_size=64)] == [10]


def test_structures_of_inputs():
    (x, y) = next(iter(batches({"image": X, "row": Y}, Y, seed=0, batch_size=5)))
    np.testing.assert_array_equal(x["row"], y)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmented_images_keep_their_shape(name):
    ((x, _),) = batches(X, Y, 0, AUGMENTATIONS[name], batch_size=10)
    assert x.shape == X.shape


@pytest.mark.parametrize("make", [batches, augmented, shifted])
def test_nothing_is_tuned(make):
    """An iterator that is tuned may sleep at its end for as long as the epoch took."""
    assert make(np.repeat(X, 30, 0), np.repeat(Y, 30), 0).options().autotune.enabled is False
