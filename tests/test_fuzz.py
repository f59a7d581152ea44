"""Damaged files through every public reader; in full by `python -m benchmarks.fuzz`."""

import warnings

import pytest

from benchmarks.fuzz import fuzz, make_targets, table


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets = make_targets(tmp_path_factory.mktemp("fuzz"))
    return fuzz(targets, share=0.02)


def test_damage_ends_in_an_answer_or_a_clean_error(found):
    failed = [(key, counts.examples) for key, counts in found.items() if counts.outcomes["failed"]]
    assert not failed, table(found)


def test_every_kind_of_outcome_occurs(found):
    """So that the benchmark does not count what it never sees."""
    of = {(reader, damage): counts.outcomes for (_, reader, damage), counts in found.items()}
    assert of["inspect_tflite", "flipped"]["other"] > 5
    assert of["inspect_tflite", "truncated"]["clean"] > 5
    assert of["Runner", "flipped"]["clean"] > 5
    assert of["unpack", "flipped"]["clean"] > 100
    assert of["TeacherCache.load", "flipped"]["clean"] > 100
    assert not any(counts["other"] for (name, _), counts in of.items() if name == "unpack")
