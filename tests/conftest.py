"""Fixtures that every test shares."""

import gc
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import hypothesis
import keras
import numpy as np
import pytest

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


def pytest_collection_finish():
    # `clear_session` collects garbage. What is imported by now stays, and need not be walked after
    # every test: that took a third of a second each time.
    gc.collect()
    gc.freeze()
    # And nobody need look for it while a graph is traced, which makes many objects and hardly any
    # garbage.
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session()


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's bundled digits: images (n, 8, 8, 1) in 0..1 and labels, split 1437/360."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images[..., None] / 16.0).astype(np.float32)
    labels = data.target.astype(np.int32)
    return (images[:1437], labels[:1437]), (images[1437:], labels[1437:])


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the larger data sets; the test is skipped where there is none."""
    candidates = [os.environ.get("TFCOMPRESS_DATA"), "../shared/data"]
    for candidate in filter(None, candidates):
        path = pathlib.Path(candidate)
        if (path / "mnist.npz").exists():
            return path
    pytest.skip("no data")
