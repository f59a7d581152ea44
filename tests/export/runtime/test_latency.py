import numpy as np
import pytest

from tfcompress.export.runtime import latency
from tfcompress.export.runtime.latency import compare_latency, paired_ratio


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)

    def wait(self, seconds):
        def run():
            self.now += seconds

        return run


def test_ratio_of_known_delays(monkeypatch):
    clock = Clock(monkeypatch)
    found = compare_latency({"short": clock.wait(0.002), "long": clock.wait(0.005)}, runs=15)
    assert found.reference == "short"
    assert found.medians == pytest.approx({"short": 2.0, "long": 5.0})
    assert found.ratios["short"].median == 1.0
    ratio = found.ratios["long"]
    for value in (ratio.lower_quartile, ratio.median, ratio.upper_quartile):
        assert value == pytest.approx(2.5)


def test_short_runs_are_measured_in_blocks(monkeypatch):
    clock = Clock(monkeypatch)
    calls = []

    def run():
        calls.append(0)
        clock.now += 0.0001

    found = compare_latency({"a": run}, runs=3, min_block_ms=1.0)
    # Three to warm up, three for the estimate, then three blocks of ten a round.
    assert len(calls) - 6 in (90, 99)
    assert found.medians["a"] == pytest.approx(0.1)


def test_candidates_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    compare_latency(functions, runs=6, min_block_ms=0.0)
    turns = "".join(calls)[-6 * 9 :]
    assert turns == "aaabbbcccbbbcccaaacccaaabbb" * 2


def test_a_disturbed_block_does_not_count(monkeypatch):
    clock = Clock(monkeypatch)
    calls = []

    def run():
        calls.append(0)
        clock.now += 0.050 if len(calls) % 3 == 0 else 0.002

    found = compare_latency({"a": run}, runs=5)
    assert found.medians["a"] == pytest.approx(2.0)


def test_paired_ratio_ignores_drift():
    drift = np.linspace(1.0, 10.0, 101)
    ratio = paired_ratio(2.0 * drift, drift)
    assert (ratio.lower_quartile, ratio.median, ratio.upper_quartile) == (2.0, 2.0, 2.0)


def test_files_and_functions_compare(float_file, int8_file, tmp_path):
    path = tmp_path / "int8.tflite"
    path.write_bytes(int8_file)
    candidates = {"float": float_file, "int8": path, "pass": lambda: None}
    found = compare_latency(candidates, num_threads=2, runs=5, reference="int8")
    assert set(found.medians) == set(candidates)
    assert all(median > 0 for median in found.medians.values())
    assert found.ratios["int8"].median == 1.0
    assert found.ratios["pass"].median < 1.0
    text = str(found)
    assert "ratio to int8" in text
    assert "2 thread(s)" in text
    assert text.count("\n") == 3


def test_wrong_arguments(int8_file):
    with pytest.raises(ValueError, match="at least one model"):
        compare_latency({})
    with pytest.raises(ValueError, match=r"\['a'\].*reference='b'"):
        compare_latency({"a": int8_file}, reference="b")
    with pytest.raises(ValueError, match="runs=0"):
        compare_latency({"a": int8_file}, runs=0)
