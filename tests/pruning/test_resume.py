"""An interrupted run continues bit for bit: from a backup, and from a saved model."""

import keras
import numpy as np
import pytest

from tfcompress.pruning import (
    SET,
    ConstantSparsity,
    CosineSchedule,
    DynamicNetworkSurgery,
    MetricGuided,
    PolynomialDecay,
    RigL,
    ScoringOptions,
)
from tfcompress.pruning.callbacks import Pruning


class Interrupt(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            raise KeyboardInterrupt


def build(seed, **options):
    """A small network. Tracing takes longer than an epoch of steps does with `run_eagerly`."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )
    return compiled(model, **options)


def compiled(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Its momentum is a state to come back; Adam's two would take twice as long to trace.
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"], **options)
    return model


METHODS = {
    "polynomial": lambda data, **of: Pruning(PolynomialDecay(0, 0.8, 0, 20, frequency=4), **of),
    "cosine, taylor": lambda data, **of: Pruning(
        CosineSchedule(0, 0.8, 0, 20, frequency=4), criterion="taylor", data=data, **of
    ),
    "global": lambda data, **of: Pruning(
        PolynomialDecay(0, 0.8, 0, 20, frequency=5), scope="global", **of
    ),
    "movement": lambda data, **of: Pruning(
        PolynomialDecay(0, 0.8, 2, 20, frequency=4), criterion="movement", **of
    ),
    "surgery": lambda data, **of: Pruning(
        DynamicNetworkSurgery(PolynomialDecay(0, 0.8, 0, 20), frequency=2), **of
    ),
    "SET": lambda data, **of: Pruning(SET(0.7, 20, frequency=3), **of),
    "RigL": lambda data, **of: Pruning(
        RigL(0.7, 20, frequency=3), data=data, scoring=ScoringOptions(num_batches=1), **of
    ),
    "guided": lambda data, **of: Pruning(MetricGuided("accuracy", 0.5), **of),
}
REGROWING = ["movement", "surgery", "SET", "RigL"]


def make(name, data, **options):
    return METHODS[name](data, verbose=0, **options)


def own_layers(name):
    """Names of the layers of a method: two, where one ranking goes over all."""
    return [f"{name.replace(', ', '_')}_{i}" for i in range(2 if name == "global" else 1)]


def build_for(names, seed):
    """A network in which each of these methods has layers of its own: one training for all."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Flatten()(inputs)
    branches = []
    for name in names:
        branches.append(x)
        for layer in own_layers(name):
            branches[-1] = keras.layers.Dense(8, activation="relu", name=layer)(branches[-1])
    x = keras.layers.BatchNormalization()(keras.layers.Add()(branches))
    return compiled(keras.Model(inputs, keras.layers.Dense(3)(x)))


def prune_each(names, data):
    """Method → its callback, on its own layers."""
    return {name: make(name, data, layers=own_layers(name)) for name in names}


def fit(model, data, callbacks, epochs=4, **options):
    x, y = data
    return model.fit(
        x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks, **options
    )


def assert_same(one, other):
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


@pytest.fixture(scope="module")
def uninterrupted(blobs):
    """The model of a run that nothing disturbed, and method → masks."""
    model, used = build_for(METHODS, 0), prune_each(METHODS, blobs)
    fit(model, blobs, list(used.values()))
    masks = {name: [m.numpy() for m in each.pruner.masks] for name, each in used.items()}
    assert all(not np.concatenate(found, None).all() for found in masks.values())
    return model, masks


def assert_same_run(uninterrupted, model, used):
    expected, masks = uninterrupted
    assert_same(model, expected)
    for name, callback in used.items():
        for a, b in zip(callback.pruner.masks, masks[name], strict=True):
            np.testing.assert_array_equal(a.numpy(), b, err_msg=name)


def test_backup_and_restore_continues_bit_for_bit(uninterrupted, blobs, tmp_path):
    def callbacks():
        used = prune_each(METHODS, blobs)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        # Only what acts on the metrics of an epoch has to come before the backup of that epoch.
        last = ("movement", "RigL")
        before = [each for name, each in used.items() if name not in last]
        return used, [*before, backup, *(used[name] for name in last)]

    with pytest.raises(KeyboardInterrupt):
        fit(build_for(METHODS, 0), blobs, [*callbacks()[1], Interrupt(15)])
    resumed = build_for(METHODS, 7)
    used, ordered = callbacks()
    assert fit(resumed, blobs, ordered).epoch == [2, 3]
    assert_same_run(uninterrupted, resumed, used)


def test_a_saved_model_continues_bit_for_bit(uninterrupted, blobs, tmp_path):
    path = str(tmp_path / "half.keras")
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_freq="epoch")
    # Stops after two epochs as a crash would: what ends a run has not been done.
    used = prune_each(METHODS, blobs).values()
    with pytest.raises(KeyboardInterrupt):
        fit(build_for(METHODS, 0), blobs, [*used, checkpoint, Interrupt(13)])
    loaded = keras.models.load_model(path)
    used = prune_each(METHODS, blobs)
    for callback in used.values():
        callback.restore_from = path
    fit(loaded, blobs, list(used.values()), initial_epoch=2)
    assert_same_run(uninterrupted, loaded, used)


def test_gradual_pruning_continues_from_the_zeros_alone(blobs, tmp_path):
    expected = build(0)
    fit(expected, blobs, [make("polynomial", blobs)])
    half = build(0)
    fit(half, blobs, [make("polynomial", blobs)], epochs=2)
    half.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    fit(loaded, blobs, [make("polynomial", blobs)], initial_epoch=2)
    assert_same(loaded, expected)


def test_a_regrowing_method_refuses_to_guess_its_state(blobs, tmp_path):
    half = build_for(REGROWING, 0)
    fit(half, blobs, list(prune_each(REGROWING, blobs).values()), epochs=1)
    half.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    for callback in prune_each(REGROWING, blobs).values():
        with pytest.raises(ValueError, match=r"no state of it was found.*restore_from"):
            fit(loaded, blobs, [callback], initial_epoch=1)


def test_a_second_fit_in_the_same_process_goes_on(blobs):
    names = ("movement", "RigL")
    expected, model = build_for(names, 0), build_for(names, 0)
    fit(expected, blobs, list(prune_each(names, blobs).values()))
    fit(model, blobs, list(prune_each(names, blobs).values()), epochs=2)
    fit(model, blobs, list(prune_each(names, blobs).values()), initial_epoch=2)
    assert_same(model, expected)


def test_a_state_of_another_run_is_not_taken(blobs, tmp_path):
    model = build(0, run_eagerly=True)
    fit(model, blobs, [make("SET", blobs)], epochs=1)
    model.save(tmp_path / "set.keras")
    callback = make("RigL", blobs)
    callback.restore_from = str(tmp_path / "set.keras")
    with pytest.raises(ValueError, match="does not hold the state"):
        fit(build(0, run_eagerly=True), blobs, [callback], epochs=1)


def test_the_file_opens_without_the_callback(blobs, tmp_path):
    model = build(0, run_eagerly=True)
    fit(model, blobs, [make("surgery", blobs)], epochs=2)
    model.save(tmp_path / "pruned.keras")
    model.save_weights(tmp_path / "pruned.weights.h5")
    loaded = keras.models.load_model(tmp_path / "pruned.keras")
    assert_same(loaded, model)
    plain = build(3, run_eagerly=True)
    plain.optimizer.build(plain.trainable_variables)
    plain.load_weights(tmp_path / "pruned.weights.h5")
    assert_same(plain, model)
    assert len(loaded.variables) == len(build(0, run_eagerly=True).variables)


def test_later_training_makes_an_old_state_void(blobs):
    model = build(0, run_eagerly=True)
    fit(model, blobs, [Pruning(ConstantSparsity(0.5), verbose=0)], epochs=1)
    fit(model, blobs, [], epochs=1)
    kernel = model.layers[1].kernel
    assert (kernel.numpy() != 0).all()
    callback = Pruning(ConstantSparsity(0.25), verbose=0)
    fit(model, blobs, [callback], epochs=1)
    assert (kernel.numpy() == 0).mean() == 0.25


def constant(sparsity, **options):
    return Pruning(ConstantSparsity(sparsity, 0, 0), verbose=0, **options)


def test_another_schedule_begins_anew_from_the_zeros(blobs):
    model = build(0, run_eagerly=True)
    fit(model, blobs, [constant(0.5)], epochs=1)
    found = [layer.kernel.numpy() == 0 for layer in model.layers if hasattr(layer, "kernel")]
    callback = constant(0.8)
    fit(model, blobs, [callback], epochs=1)
    assert callback.pruner.overall_sparsity() == pytest.approx(0.8, abs=0.02)
    for zeros, mask in zip(found, callback.pruner.masks, strict=True):
        assert not mask.numpy()[zeros].any()
    again = constant(0.8, preserve_zeros=False)
    fit(model, blobs, [again], epochs=1)
    assert all(found.all() for found in again.pruner.found)


def test_another_budget_of_sparse_training_is_not_the_old_run(blobs):
    model = build(0, run_eagerly=True)
    fit(model, blobs, [make("SET", blobs)], epochs=1)
    step = int(model.optimizer.iterations.numpy())
    with pytest.raises(ValueError, match=r"no state of it was found.*begin one now"):
        fit(model, blobs, [Pruning(SET(0.9, 40, frequency=3), verbose=0)], epochs=1)
    callback = Pruning(SET(0.9, 40, begin_step=step, frequency=3, budget="uniform"), verbose=0)
    fit(model, blobs, [callback], epochs=1)
    assert callback.pruner.overall_sparsity() == pytest.approx(0.9, abs=0.02)


def test_a_finished_search_does_not_end_the_next(blobs):
    model = build(0)
    first = Pruning(MetricGuided("accuracy", 1.0, max_sparsity=0.4), verbose=0)
    fit(model, blobs, [first])
    assert first.pruner.overall_sparsity() == pytest.approx(0.4, abs=0.02)
    assert not [name for name in first.pruner.state.values if name.startswith("held_")]
    second = Pruning(MetricGuided("accuracy", 1.0, max_sparsity=0.7), verbose=0)
    fit(model, blobs, [second])
    assert second.pruner.overall_sparsity() == pytest.approx(0.7, abs=0.02)


def test_as_many_steps_of_plain_training_make_an_old_state_void(blobs):
    model = build(0, run_eagerly=True)
    options = {"epochs": 1}
    fit(model, blobs, [constant(0.25)], **options)
    model.compile(keras.optimizers.Adam(0.01), model.loss, run_eagerly=True)
    fit(model, blobs, [], **options)
    kernel = model.layers[1].kernel
    before = np.abs(kernel.numpy())
    callback = constant(0.25)
    fit(model, blobs, [callback], **options)
    mask = callback.pruner.masks[0].numpy()
    assert before[~mask].max() <= before[mask].min()


def test_a_file_of_another_run_is_refused(blobs, tmp_path):
    path = str(tmp_path / "half.keras")
    model = build(0, run_eagerly=True)
    fit(model, blobs, [make("polynomial", blobs)], epochs=1)
    model.save(path)
    changed = {
        "settings": (model, Pruning(PolynomialDecay(0, 0.9, 0, 20, frequency=4), verbose=0)),
        "step": (build(0, run_eagerly=True), make("polynomial", blobs)),
    }
    for other, callback in changed.values():
        callback.restore_from = path
        with pytest.raises(ValueError, match=r"Expected the state of a run with the same schedule"):
            fit(other, blobs, [callback], epochs=1)


def test_a_file_is_read_by_the_first_fit_only(blobs, tmp_path):
    path = str(tmp_path / "half.keras")
    half = build(0)
    fit(half, blobs, [make("SET", blobs)], epochs=1)
    half.save(path)
    loaded = keras.models.load_model(path)
    callback = make("SET", blobs)
    callback.restore_from = path
    fit(loaded, blobs, [callback], initial_epoch=1, epochs=2)
    fit(loaded, blobs, [callback], initial_epoch=2)
    expected = build(0)
    fit(expected, blobs, [make("SET", blobs)])
    assert_same(loaded, expected)


def test_a_model_with_weights_of_its_own_continues(watched, blobs, tmp_path):
    path = str(tmp_path / "half.weights.h5")
    half = watched(run_eagerly=True)
    fit(half, blobs, [make("movement", blobs)], epochs=1)
    half.save_weights(path)
    resumed = watched(run_eagerly=True)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(path)
    callback = make("movement", blobs)
    callback.restore_from = path
    fit(resumed, blobs, [callback], initial_epoch=1)
    assert callback.pruner.overall_sparsity() == pytest.approx(0.8, abs=0.02)
