"""Schedules: their formulas, their update steps, and tfmot as the oracle."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import fresh
from tfcompress.pruning.schedules import (
    ConstantSparsity,
    CosineSchedule,
    PolynomialDecay,
    PruningSchedule,
    get_schedule,
)

RAMPS = [PolynomialDecay, CosineSchedule]
sparsities = st.floats(0.0, 0.99)


def test_polynomial_decay_follows_its_formula():
    schedule = PolynomialDecay(0.2, 0.9, begin_step=10, end_step=110, power=3, frequency=10)
    for step in range(0, 130):
        p = min(max((step - 10) / 100, 0), 1)
        assert schedule.sparsity(step) == pytest.approx(0.9 + (0.2 - 0.9) * (1 - p) ** 3)


def test_cosine_schedule_follows_its_formula():
    schedule = CosineSchedule(0.0, 0.8, begin_step=0, end_step=50, frequency=5)
    for step in range(51):
        expected = 0.8 - 0.8 * (1 + math.cos(math.pi * step / 50)) / 2
        assert schedule.sparsity(step) == pytest.approx(expected)


@pytest.mark.parametrize(
    "schedule", [ConstantSparsity(0.3, 0, 7, 3), PolynomialDecay(0, 0.5, 2, 9)]
)
def test_updates_at_end_step_always(schedule):
    assert schedule(schedule.end_step)[0]
    assert not schedule(schedule.end_step + 1)[0]
    assert schedule.last_update(10_000) == schedule.end_step


def test_constant_sparsity_never_ends_by_default():
    schedule = ConstantSparsity(0.3, begin_step=5, frequency=10)
    assert [s for s in range(40) if schedule(s)[0]] == [5, 15, 25, 35]
    assert schedule.last_update(4) is None


@given(
    kind=st.sampled_from(RAMPS),
    initial=sparsities,
    final=sparsities,
    begin=st.integers(0, 500),
    length=st.integers(0, 500),
    frequency=st.integers(1, 60),
)
def test_ramps_are_monotone_and_reach_their_ends(kind, initial, final, begin, length, frequency):
    schedule = kind(initial, final, begin, begin + length, frequency=frequency)
    values = [schedule.sparsity(s) for s in range(begin, begin + length + 1)]
    steps = np.diff(values)
    assert np.all(steps >= -1e-12) if final >= initial else np.all(steps <= 1e-12)
    assert values[-1] == pytest.approx(final)
    if length:
        assert values[0] == pytest.approx(initial)
    updates = [s for s in range(begin + length + 5) if schedule(s)[0]]
    assert updates == sorted({*range(begin, begin + length + 1, frequency), begin + length})


@given(step=st.integers(0, 300), frequency=st.integers(1, 50), begin=st.integers(0, 100))
def test_last_update_is_the_latest_step_that_updates(step, frequency, begin):
    schedule = ConstantSparsity(0.5, begin, begin + 120, frequency)
    earlier = [s for s in range(step + 1) if schedule(s)[0]]
    assert schedule.last_update(step) == (earlier[-1] if earlier else None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantSparsity(1.0), r"\[0, 1\).*Received: target_sparsity=1.0"),
        (lambda: ConstantSparsity(-0.1), r"\[0, 1\)"),
        (lambda: PolynomialDecay(0, 1.2, 0, 10), r"Received: final_sparsity=1.2"),
        (lambda: PolynomialDecay(0, 0.5, 10, 5), "end before it begins"),
        (lambda: CosineSchedule(0, 0.5, 10, 5), "end before it begins"),
        (lambda: PolynomialDecay(0, 0.5, 0, -1), "needs an end_step"),
        (lambda: PolynomialDecay(0, 0.5, 0, 5, power=0), "`power`"),
        (lambda: ConstantSparsity(0.5, -2), "`begin_step`"),
        (lambda: ConstantSparsity(0.5, frequency=0), "`frequency`"),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantSparsity(0.5, 1, 20, 3),
        PolynomialDecay(0.1, 0.5, 1, 20, 2, 3),
        CosineSchedule(0.1, 0.5, 1, 20, 3),
    ],
)
def test_config_round_trip(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()


def test_any_callable_is_a_schedule():
    schedule = get_schedule(lambda step: (step in (3, 8), step / 10))
    assert isinstance(schedule, PruningSchedule)
    assert [schedule.last_update(s) for s in (0, 3, 7, 9, 4)] == [None, 3, 3, 8, 3]
    with pytest.raises(TypeError, match="schedule"):
        get_schedule(0.5)


def test_equals_tfmot_over_the_whole_range():
    # In a process of its own: tfmot flips `tf.keras` to the legacy Keras on import.
    script = """
    import keras, tensorflow as tf
    tf.keras
    import tensorflow_model_optimization as tfmot
    from tfcompress.pruning.schedules import PolynomialDecay, ConstantSparsity, get_schedule
    for args in [(0.0, 0.9, 0, 400, 3, 100), (0.3, 0.98, 17, 203, 2, 7), (0.5, 0.5, 0, 50, 1, 50)]:
        ours, theirs = PolynomialDecay(*args), tfmot.sparsity.keras.PolynomialDecay(*args)
        accepted = get_schedule(theirs)
        assert type(accepted) is PolynomialDecay and accepted.get_config() == ours.get_config()
        for step in range(args[3] + 20):
            due, sparsity = theirs(tf.constant(step))
            assert abs(float(sparsity) - ours(step)[1]) < 1e-6, (args, step)
            if step != args[3]:
                assert bool(due) == ours(step)[0], (args, step)
    ours = ConstantSparsity(0.4, 5, -1, 10)
    theirs = tfmot.sparsity.keras.ConstantSparsity(0.4, 5, -1, 10)
    assert get_schedule(theirs).get_config() == ours.get_config()
    assert all(bool(theirs(s)[0]) == ours(s)[0] for s in range(60))
    class Own(tfmot.sparsity.keras.PruningSchedule):
        def __call__(self, step): return step % 4 == 0, tf.constant(0.25)
        def get_config(self): return {}
    assert get_schedule(Own()).last_update(7) == 4 and get_schedule(Own()).sparsity(3) == 0.25
    print("equal")
    """
    assert fresh.run(script).strip() == "equal"
