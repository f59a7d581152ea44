"""The comparison with peers: what its measures mean, and what its tools are."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

from benchmarks.peers import METHODS
from benchmarks.peers_parts.environments import REQUIREMENTS
from benchmarks.peers_parts.job import Job, scaled
from benchmarks.peers_parts.measure import steps_apart
from tfcompress.export.runtime.codes import TensorInfo


def output(scale, zero_point=0):
    return TensorInfo("logits", 0, (1, 3), np.int8, scale, zero_point)


def test_steps_of_an_int8_output_and_of_a_float_one():
    expected = np.array([[0.0, 1.26, 900.0]])
    outputs = np.array([[0.0, 1.0, 63.5]])
    # The last value is beyond the codes, whose largest stands for it.
    assert steps_apart(expected, outputs, output(0.5)).tolist() == [[0, 1, 0]]
    expected = np.array([[0.0, 2.55, 1.0]])
    outputs = np.array([[0.004, 2.55, 1.016]])
    assert steps_apart(expected, outputs, output(0.0)).tolist() == [[0, 0, 2]]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_environment_and_a_module(method):
    environment, module = METHODS[method]
    assert environment == "tfcompress" or environment in REQUIREMENTS
    assert importlib.util.find_spec(f"benchmarks.peers_parts.{module}") is not None


def test_a_job_gives_every_method_the_same_samples(tmp_path):
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(40), x_test=x, y_test=np.zeros(40))
    jobs = [Job("mnist", method, 3, 1, 1e-3, str(tmp_path), 8) for method in ("a", "b")]
    first, second = (job.calibration_data() for job in jobs)
    np.testing.assert_array_equal(first, second)
    assert (first.shape, first.min() >= 0, first.max() <= 1) == ((8, 4, 4, 1), True, True)
    assert scaled("cifar10", np.array([0, 255])).tolist() == [-1, 1]
    assert Job(**json.loads(json.dumps(dataclasses.asdict(jobs[0])))) == jobs[0]
