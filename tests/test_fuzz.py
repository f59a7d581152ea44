"""A tenth of the damaged files of `python -m benchmarks.fuzz`, through every public reader."""

import collections
import dataclasses
import warnings

import pytest

from benchmarks.fuzz import as_row, fuzz, make_targets, table

# What a file costs in these readers, in those that only parse it.
_SLOW = 20


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets = make_targets(tmp_path_factory.mktemp("fuzz"))
    slow = [{name: _SLOW * cost for name, cost in target.cost.items()} for target in targets]
    targets = [dataclasses.replace(t, cost=cost) for t, cost in zip(targets, slow, strict=True)]
    return dict(fuzz(targets, share=0.1))


def test_damage_ends_in_an_answer_or_a_clean_error(found):
    failed = [(key, counts.examples) for key, counts in found.items() if counts.outcomes["failed"]]
    assert not failed, table([as_row(*entry) for entry in found.items()])


def test_every_kind_of_outcome_occurs(found):
    """So that the benchmark does not count what it never sees."""
    of = collections.defaultdict(collections.Counter)
    for (_, reader, damage), counts in found.items():
        of[reader, damage] += counts.outcomes
    assert of["inspect_tflite", "flipped"]["other"] > 5
    assert of["inspect_tflite", "truncated"]["clean"] > 5
    assert of["Runner", "flipped"]["clean"] > 2
    assert of["tfcompress inspect", "flipped"]["clean"] > 2
    assert of["unpack", "flipped"]["clean"] > 100
    assert of["TeacherCache.load", "flipped"]["clean"] > 100
    assert of["Sensitivity.load", "flipped"]["clean"] > 100
    assert of["Recipe.load", "flipped"]["clean"] > 100
    assert of["Recipe.load", "flipped"]["other"] > 5
    assert not any(counts["other"] for (name, _), counts in of.items() if name == "unpack")
