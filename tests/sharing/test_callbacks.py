"""Assignments during `fit`: when they move, and what stops, restores and resumes with them."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.sharing import Clustering, cluster, refresh_assignments
from tfcompress.sharing.clustering import clustered_kernels
from tfcompress.sharing.codebook import Cluster


def state(model):
    found = [transform for _, transform in clustered_kernels(model)]
    return [(t.centroids.numpy(), t.assignments.numpy()) for t in found]


def reassigns(model):
    return {float(transform.reassigns.numpy()) for _, transform in clustered_kernels(model)}


@pytest.fixture
def small():
    """`(model of two clustered layers, compiled; x; y)`."""
    inputs = keras.Input((6,))
    x = layers.Dense(12, activation="relu", name="a")(inputs)
    model = cluster(keras.Model(inputs, layers.Dense(3, name="b")(x)), 5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Eagerly, because tracing takes longer than these few steps.
    model.compile(keras.optimizers.Adam(0.03), loss, run_eagerly=True)
    random = np.random.default_rng(0)
    return model, random.normal(size=(64, 6)).astype(np.float32), random.integers(0, 3, 64)


def test_fit_moves_centroids_always_and_assignments_on_schedule(trained, digits, compiled):
    (x, y), _ = digits
    model = compiled(cluster(trained, 8))
    transforms = [transform for _, transform in clustered_kernels(model)]

    def state():
        return [(t.centroids.numpy(), t.assignments.numpy()) for t in transforms]

    start = state()
    model.fit(x, y, batch_size=128, epochs=1, verbose=0)
    plain = state()
    for (c0, a0), (c1, a1) in zip(start, plain, strict=True):
        assert np.all(c0 != c1)
        np.testing.assert_array_equal(a0, a1)
    # 12 steps an epoch: refreshed before step 12 + 3, which reads what is nearest by then; and kept
    # as they are after it.
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(state()[1][1])
    )
    callback = Clustering(frequency=50, begin_step=15, end_step=16)
    model.fit(x, y, batch_size=128, epochs=1, verbose=0, callbacks=[callback, watch])
    changes = [i for i in range(1, 12) if not np.array_equal(seen[i], seen[i - 1])]
    assert changes == [3, 4]
    assert refresh_assignments(model) >= 0.0


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_no_refresh_is_missed_between_executions(stride):
    callback = Clustering(frequency=5, begin_step=2, end_step=30)
    visited = list(range(0, 60, stride))
    due = [
        step
        for last, step in zip([None, *visited], visited, strict=False)
        if callback.is_due(step, last)
    ]
    # The first step of an execution at or behind 2, 7, 12, 17, 22 and 27.
    assert due == sorted({-(-step // stride) * stride for step in range(2, 30, 5)})


@pytest.mark.parametrize("clustering_first", [False, True])
@pytest.mark.parametrize("end_step", [4, None])
def test_the_best_weights_come_back_with_their_assignments(small, clustering_first, end_step):
    model, x, y = small
    # By its number the first epoch, in which assignments move, is the best.
    count = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(number=epoch)
    )
    stopping = keras.callbacks.EarlyStopping("number", mode="min", restore_best_weights=True)
    callbacks = [Clustering(3, end_step=end_step), stopping]
    callbacks = [count, *(callbacks if clustering_first else callbacks[::-1])]
    options = {"batch_size": 32, "verbose": 0, "callbacks": callbacks, "validation_data": (x, y)}
    history = model.fit(x, y, epochs=3, **options).history
    assert stopping.best_epoch == 0
    assert len(set(history["val_loss"])) > 1
    assert reassigns(model) == {0.0}
    assert model.evaluate(x, y, verbose=0) == pytest.approx(history["val_loss"][0], rel=1e-5)
    before = state(model)
    model.fit(x, y, batch_size=32, epochs=1, verbose=0)
    for (old, kept), (new, now) in zip(before, state(model), strict=True):
        assert np.any(old != new)
        np.testing.assert_array_equal(kept, now)


@pytest.mark.parametrize("clustering_first", [False, True])
@pytest.mark.parametrize("end_step", [4, 7])
def test_a_run_that_broke_off_is_resumed(small, clustering_first, end_step, tmp_path):
    model, x, y = small
    start = model.get_weights()

    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def fit(*more):
        model.set_weights(start)
        for variable in model.optimizer.variables:
            if "learning_rate" not in variable.path:
                variable.assign(np.zeros_like(variable.numpy()))
        callbacks = [Clustering(3, end_step=end_step), *more]
        callbacks = callbacks if clustering_first else callbacks[::-1]
        # Two steps an epoch: it breaks off before step 4.
        model.fit(x, y, batch_size=32, epochs=4, verbose=0, shuffle=False, callbacks=callbacks)

    fit()
    expected = model.get_weights()
    with pytest.raises(KeyboardInterrupt):
        fit(keras.callbacks.BackupAndRestore(tmp_path / "backup"), Break())
    fit(keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert int(model.optimizer.iterations.numpy()) == 8
    assert reassigns(model) == {0.0}
    for ours, theirs in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_moving_is_no_weight_of_the_model(small, tmp_path):
    model, x, _ = small
    refresh_assignments(model)
    before = model.predict(x, verbose=0)
    for _, transform in clustered_kernels(model):
        transform.reassigns.assign(1.0)
    assert not any("reassigns" in variable.path for variable in model.variables)
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "saved", verbose=False)
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert reassigns(loaded) == reassigns(keras.models.clone_model(model)) == {0.0}
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), before)


def test_mistakes_in_training(trained):
    with pytest.raises(ValueError, match="not clustered"):
        cluster(cluster(trained, 4), 4)
    with pytest.raises(ValueError, match="cluster"):
        refresh_assignments(trained)
    with pytest.raises(ValueError, match="frequency"):
        Clustering(0)
    with pytest.raises(ValueError, match="end_step"):
        Clustering(1, begin_step=5, end_step=4)


@pytest.mark.stock
def test_assignments_are_stored_once_an_epoch_and_before_validation(small, monkeypatch):
    """It runs over all weights outside of the compiled step."""
    model, x, y = small
    stored = []
    assign_nearest = Cluster.assign_nearest
    monkeypatch.setattr(
        Cluster, "assign_nearest", lambda t, v: stored.append(t) or assign_nearest(t, v)
    )
    options = {"batch_size": 8, "verbose": 0, "callbacks": [Clustering(frequency=100)]}
    model.fit(x, y, epochs=2, validation_data=(x, y), **options)
    assert len(stored) == 2 * 2
    assert reassigns(model) == {0.0}
