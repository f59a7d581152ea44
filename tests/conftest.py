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

from tests import slow

# No Keras here: pytest-xdist's controller loads this file too and would import TensorFlow in vain.

# How long an example takes says how busy the machine is, and nothing of the code.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

# Tests between two garbage collections. One after every test took a third of all CPU time.
_TESTS_PER_COLLECTION = 20


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the slow tests, and lets the files that take longest run first.

    One worker runs a whole file. The short files at the end keep both busy.
    """
    seconds = slow.read()
    by_file = collections.Counter()
    for name, taken in seconds.items():
        by_file[name.split("::")[0]] += taken
    for item in items:
        if item.nodeid.split("[")[0] in seconds:
            item.add_marker("slow")
    items.sort(key=lambda item: -by_file[item.nodeid.split("::")[0]])


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
def _no_autotuning():
    """Input pipelines that Keras makes of arrays are not tuned.

    The end of an epoch waits for the tuner, a fifth of the time of a short `fit`.
    """
    import tensorflow as tf

    stock = tf.data.Dataset.with_options

    def with_options(dataset, options, name=None):
        options.autotune.enabled = False
        return stock(dataset, options, name)

    tf.data.Dataset.with_options = with_options
    yield
    tf.data.Dataset.with_options = stock


@pytest.fixture(autouse=True)
def _traced_once(request, monkeypatch):
    """Functional models make the variables of optimizer and metrics before their step is traced.

    Keras makes them in the first trace, and TensorFlow then traces the step again: half of the time
    of a short `fit`. Subclassed models train as in stock Keras, and so do all models of a test with
    the marker `stock`.
    """
    if request.node.get_closest_marker("stock"):
        return
    import keras
    import tensorflow as tf

    from tfcompress.model.graph import is_functional, output_structure
    from tfcompress.model.training import make_training_variables

    stock = keras.Model.make_train_function

    def make_train_function(model, force=False):
        if model.train_function is not None and not force:
            return
        stock(model, force)
        traced = model.train_function
        # Models of ours that do so themselves have a method for it.
        if hasattr(model, "make_training_variables") or not is_functional(model):
            return

        def first_step(iterator):
            model.train_function = traced
            if isinstance(iterator, tf.data.Iterator) and model.built and not model.run_eagerly:
                make_training_variables(model, output_structure(model), iterator.element_spec)
            return traced(iterator)

        model.train_function = first_step

    monkeypatch.setattr(keras.Model, "make_train_function", make_train_function)


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
