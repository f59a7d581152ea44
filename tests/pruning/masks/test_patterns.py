"""Patterns against NumPy written out by loops; exact counts, ties and nesting by hypothesis."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcompress.model.kernels import KernelSpec
from tfcompress.pruning.masks.groups import keep_count, keep_highest
from tfcompress.pruning.masks.patterns import (
    Block,
    Channels,
    NOfM,
    Unstructured,
    get_pattern,
)

DENSE = KernelSpec("kernel", (-1,), (-2,))
DEPTHWISE = KernelSpec("kernel", (-2, -1), ())
TRANSPOSED = KernelSpec("kernel", (-2,), (-1,))
fractions = st.floats(0.0, 0.99)


def random_scores(seed, *shape, ties=False):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, shape).astype(np.float32) if ties else rng.random(shape, np.float32)


def stable_top(scores, count):
    keep = np.zeros(scores.size, bool)
    keep[np.argsort(-scores, kind="stable")[:count]] = True
    return keep


@given(st.integers(0, 10**6), st.integers(1, 200), fractions, st.booleans())
def test_keep_highest_is_a_stable_sort(seed, size, sparsity, ties):
    scores = random_scores(seed, size, ties=ties)
    count = keep_count(size, sparsity)
    np.testing.assert_array_equal(keep_highest(scores, count), stable_top(scores, count))


@given(st.integers(0, 10**6), fractions)
def test_alive_groups_come_first(seed, sparsity):
    scores = random_scores(seed, 60, ties=True)
    alive = random_scores(seed + 1, 60) > 0.5
    count = keep_count(60, sparsity)
    keep = keep_highest(scores, count, alive)
    assert keep.sum() == count
    assert not (keep & ~alive).any() or (keep | ~alive).all()


@pytest.mark.parametrize(("size", "sparsity", "kept"), [(10, 0.85, 2), (3, 0.99, 1), (7, 0, 7)])
def test_keep_count(size, sparsity, kept):
    assert keep_count(size, sparsity) == kept


@given(st.integers(0, 10**6), fractions, st.booleans())
def test_unstructured(seed, sparsity, ties):
    scores = random_scores(seed, 3, 3, 4, 5, ties=ties)
    mask = Unstructured().mask(scores, sparsity, DENSE)
    assert mask.sum() == keep_count(180, sparsity)
    np.testing.assert_array_equal(mask.ravel(), stable_top(scores.ravel(), mask.sum()))


@given(st.integers(0, 10**6), fractions)
def test_block(seed, sparsity):
    scores = random_scores(seed, 2, 8, 6)
    mask = Block(4, 2).mask(scores, sparsity, DENSE)
    sums = [
        scores[p, i : i + 4, o : o + 2].sum()
        for p in range(2)
        for i in range(0, 8, 4)
        for o in range(0, 6, 2)
    ]
    keep = stable_top(np.array(sums), keep_count(12, sparsity))
    index = 0
    for p in range(2):
        for i in range(0, 8, 4):
            for o in range(0, 6, 2):
                assert (mask[p, i : i + 4, o : o + 2] == keep[index]).all()
                index += 1


@given(st.integers(0, 10**6), st.sampled_from([(1, 4), (2, 4), (4, 4), (1, 2), (3, 8)]))
def test_n_of_m_holds_in_every_group_along_the_inputs(seed, n_m):
    n, m = n_m
    scores = random_scores(seed, 3, 16, 5, ties=True)
    pattern = NOfM(n, m)
    mask = pattern.mask(scores, pattern.sparsity, DENSE)
    for p in range(3):
        for o in range(5):
            for i in range(0, 16, m):
                group = slice(i, i + m)
                np.testing.assert_array_equal(mask[p, group, o], stable_top(scores[p, group, o], n))


def test_n_of_m_groups_lie_along_literts_innermost_axis():
    scores = np.arange(32, dtype=np.float32).reshape(1, 8, 4)  # (width, outputs, inputs)
    mask = NOfM(2, 4).mask(scores, 0.5, TRANSPOSED)
    np.testing.assert_array_equal(mask[0], np.tile([False, False, True, True], (8, 1)))


@given(st.integers(0, 10**6), fractions)
def test_channels(seed, sparsity):
    for spec, shape, axes in (
        (DENSE, (3, 4, 6), (0, 1)),
        (TRANSPOSED, (3, 6, 4), (0, 2)),
        (DEPTHWISE, (3, 3, 2), (0,)),
    ):
        scores = random_scores(seed, *shape)
        mask = Channels().mask(scores, sparsity, spec)
        sums = scores.sum(axis=axes)
        expected = stable_top(sums.ravel(), keep_count(sums.size, sparsity)).reshape(sums.shape)
        np.testing.assert_array_equal(mask.any(axis=axes), expected)
        np.testing.assert_array_equal(mask.all(axis=axes), expected)


@given(
    st.integers(0, 10**6),
    st.lists(fractions, min_size=2, max_size=5).map(sorted),
    st.sampled_from([Unstructured(), Block(2, 4), NOfM(1, 4), Channels()]),
)
def test_masks_are_nested_while_sparsity_grows(seed, sparsities, pattern):
    mask = np.ones((2, 8, 8), bool)
    for index, sparsity in enumerate(sparsities):
        scores = random_scores(seed + index, 2, 8, 8, ties=True)
        new = pattern.mask(scores * mask, sparsity, DENSE, mask)
        assert not (new & ~mask).any()
        mask = new


@pytest.mark.parametrize("pattern", [Unstructured(), Block(2, 4), NOfM(1, 4), Channels()])
def test_config_round_trip(pattern):
    config = keras.saving.serialize_keras_object(pattern)
    assert keras.saving.deserialize_keras_object(config) == pattern
    assert get_pattern(pattern) is pattern


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NOfM(5, 4), "n <= m.*Received: n=5, m=4"),
        (lambda: NOfM(0, 4), "n <= m"),
        (lambda: Block(0, 4), "Received: height=0"),
        (lambda: get_pattern("blocks"), "Received: pattern='blocks'"),
    ],
)
def test_bad_patterns_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("pattern", "shape", "spec"),
    [
        (NOfM(2, 4), (3, 3, 3, 8), DENSE),
        (NOfM(2, 4), (3, 3, 8, 1), DEPTHWISE),
        (Block(16, 1), (3, 3, 8, 8), DENSE),
        (Block(1, 16), (3, 3, 8, 8), DENSE),
    ],
)
def test_misfits_are_told(pattern, shape, spec):
    assert pattern.fit(shape, spec)
    assert pattern.fit((3, 16, 16), DENSE) is None
