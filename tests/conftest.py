"""Fixtures that every test shares."""

import collections
import gc
import itertools
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import hypothesis
import numpy as np
import pytest

# No Keras here: pytest-xdist's controller loads this file too and would import TensorFlow in vain.

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


# Tests between two garbage collections. One after every test took a twentieth of all CPU time.
_TESTS_PER_COLLECTION = 20


def pytest_collection_modifyitems(items):
    """Files with slow tests run first, so that no worker ends long after the other."""
    slow = collections.Counter(i.path for i in items if i.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    gc.collect()
    # What is imported by now stays, and need not be walked by any later collection.
    gc.freeze()
    # Tracing a graph makes many objects and hardly any garbage.
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="session")
def _tests_run():
    return itertools.count(1)


@pytest.fixture(autouse=True)
def _fresh_session(_tests_run):
    import keras

    if next(_tests_run) % _TESTS_PER_COLLECTION == 0:
        gc.collect()
        # Survivors are caches and fixtures of a wide scope.
        gc.freeze()
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session(free_memory=False)


@pytest.fixture(scope="session", autouse=True)
def converter():
    """The worker process that every export of the session shares; started when first needed."""
    import tfcompress as tfc

    with tfc.shared_converter() as shared:
        yield shared


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
