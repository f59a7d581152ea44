"""A training that is interrupted at any step goes on as if nothing had happened."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from benchmarks import interruption
from tests import fresh

X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
Y = np.arange(40) % 3


class Stop(keras.callbacks.Callback):
    def __init__(self, step=None):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            raise KeyboardInterrupt

    def on_train_end(self, logs=None):
        if self.step is None:
            raise KeyboardInterrupt


def make(seed=0, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dropout(0.5)(layers.Dense(8, "relu")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"], **options)
    keras.utils.set_random_seed(seed)
    return model


def fit(model, folder, *callbacks, save_freq=2, before=()):
    batches = tfc.ShuffledBatches(X, Y, batch_size=8)
    backup = tfc.callbacks.BackupAndRestore(folder, save_freq, data=batches)
    used = [*before, *callbacks, backup]
    return model.fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=used)


def stop(folder, step, *callbacks, **options):
    with pytest.raises(KeyboardInterrupt):
        fit(make(), folder, *callbacks, before=[Stop(step)], **options)


def assert_same(one, other):
    pairs = zip(
        (*one.variables, *one.optimizer.variables),
        (*other.variables, *other.optimizer.variables),
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    model = make()
    return model, fit(model, tmp_path_factory.mktemp("whole")).history


def test_every_technique_at_once_after_kill_9(tmp_path):
    """In full, each technique for itself: `python -m benchmarks.interruption`."""
    case, place = "everything", "mid-epoch"
    with pytest.raises(AssertionError, match="It died"):
        fresh.run(
            """
            import pathlib, sys
            from benchmarks import interruption
            interruption.train(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], kill=True)
            """,
            case,
            tmp_path,
            place,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["backup.weights.h5"]
    resumed = interruption.train(case, tmp_path, place)
    expected = interruption.train(case, None, place)
    assert interruption.outcome(expected, resumed, place) == "equal"
    assert not tmp_path.exists()


@pytest.mark.parametrize("step", [3, 10])
def test_interrupted_within_an_epoch(whole, tmp_path, step):
    expected, history = whole
    stop(tmp_path, step)
    model = make(seed=9)
    resumed = fit(model, tmp_path)
    assert_same(model, expected)
    first = 0 if step < 5 else 1 if step <= 10 else 2
    assert resumed.epoch == list(range(first, 3))
    # Metrics of an epoch hold the batches before the interruption too.
    for name, values in resumed.history.items():
        assert values == history[name][first:], name


def test_interrupted_after_the_last_epoch(tmp_path):
    def guided():
        return tfc.callbacks.Pruning(tfc.MetricGuided("loss", 10.0), verbose=0)

    expected = make()
    fit(expected, tmp_path / "whole", guided())
    stop(tmp_path / "part", None, guided(), save_freq="epoch")
    model, pruning = make(seed=9), guided()
    assert fit(model, tmp_path / "part", pruning).epoch == []
    assert_same(model, expected)
    assert pruning.pruner.overall_sparsity() > 0.4


def test_several_steps_to_an_execution(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(make(steps_per_execution=2), tmp_path, before=[Stop(9)])
    model = make(seed=9, steps_per_execution=2)
    fit(model, tmp_path)
    assert_same(model, whole[0])


def test_a_backup_that_fails_leaves_the_one_before(whole, tmp_path, monkeypatch):
    stop(tmp_path, 7)
    model = make(seed=9)
    with monkeypatch.context() as patch:

        def fail(path, **options):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        patch.setattr(model, "save_weights", fail)
        with pytest.raises(OSError, match="No space"):
            fit(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["backup.weights.h5"]
    # What a process that is killed while it writes would leave.
    (tmp_path / ".tfcompress-half").mkdir()
    model = make(seed=9)
    fit(model, tmp_path)
    assert_same(model, whole[0])
    assert not tmp_path.exists()


def test_later_trainings_and_files_know_nothing_of_it(tmp_path):
    stop(tmp_path / "part", 7)
    model = make()
    fit(model, tmp_path / "part")
    assert model.fit(X, Y, epochs=1, verbose=0).epoch == [0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not hasattr(loaded, "training_progress")
    assert not hasattr(model, "training_progress")


def test_another_order_is_refused(tmp_path):
    batches = tfc.ShuffledBatches(X, Y, batch_size=4)
    backup = tfc.callbacks.BackupAndRestore(tmp_path, data=batches)
    with pytest.raises(ValueError, match="shuffle=False"):
        make().fit(batches, shuffle=True, verbose=0, callbacks=[backup])


def test_arguments():
    with pytest.raises(ValueError, match="save_freq"):
        tfc.callbacks.BackupAndRestore("folder", 0)
    with pytest.raises(TypeError, match="ShuffledBatches"):
        tfc.callbacks.BackupAndRestore("folder", data=(X, Y))
    with pytest.raises(ValueError, match="one length"):
        tfc.ShuffledBatches(X, Y[:3])
    with pytest.raises(ValueError, match="batch_size"):
        tfc.ShuffledBatches(X, batch_size=0)


def test_shuffled_batches():
    inputs = {"a": np.arange(10), "b": np.arange(10) * 2}
    batches = tfc.ShuffledBatches(inputs, np.arange(10), batch_size=4, seed=3)
    assert [len(batches), len(batches[2][1])] == [3, 2]

    def order():
        parts = [batches[i] for i in range(3)]
        for x, y in parts:
            np.testing.assert_array_equal(x["b"], 2 * y)
            np.testing.assert_array_equal(x["a"], y)
        return np.concatenate([y for _, y in parts]).tolist()

    orders = []
    for batches.epoch in (0, 1, 0):
        orders.append(order())
    assert orders[0] == np.random.default_rng((3, 0)).permutation(10).tolist()
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(10))
    dropped = tfc.ShuffledBatches(inputs, batch_size=4, drop_remainder=True)
    assert [len(dropped), len(dropped[0])] == [2, 1]


def test_epochs_of_fit_are_in_the_order_of_their_number():
    batches = tfc.ShuffledBatches(X, Y, batch_size=8)
    seen = []

    class Seen(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append((epoch, batches.epoch))

    model = make()
    model.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=[Seen()])
    assert seen == [(0, 0), (1, 1)]
    model.fit(batches, epochs=3, initial_epoch=2, shuffle=False, verbose=0, callbacks=[Seen()])
    assert seen[-1] == (2, 2)
