"""Trains every technique on one device and on two replicas; run by test_replicas.py.

A process of its own, since logical devices must be made before TensorFlow starts.
"""

import functools
import pathlib
import tempfile
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfcompress as tfc
from tfcompress.model.replicas import ReplicaState

ONE, TWO = "one", "two"
# In batches of 16, the last of 8.
X = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
Y = np.random.default_rng(1).normal(size=(40, 3)).astype("float32")


@functools.cache
def mirrored():
    # One for all: their collective operations are numbered from 0 on each.
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def replicas(variable):
    """The value of a variable on each replica."""
    value = getattr(variable, "value", variable)
    return [np.asarray(part) for part in getattr(value, "values", [value])]


class Watch(keras.callbacks.Callback):
    """Notes after every epoch which variables are not the same on all replicas, or not finite."""

    def __init__(self, callbacks):
        super().__init__()
        self.callbacks, self.found = callbacks, []

    def state(self):
        for callback in self.callbacks:
            pruner = getattr(callback, "pruner", None)
            if isinstance(pruner, tfc.Pruner):
                yield from pruner.state.variables.items()
            elif pruner is not None:
                yield from ((v.path, v) for v in pruner._masks.values())
            yield from ((str(p), p.factor) for p in getattr(callback, "pieces", ()))
        for variable in (*self.model.variables, *self.model.optimizer.variables):
            yield variable.path, variable

    def on_train_batch_end(self, batch, logs=None):
        for pruner in (getattr(callback, "pruner", None) for callback in self.callbacks):
            if isinstance(pruner, tfc.Pruner):
                for kernel, mask in zip(pruner.kernels, pruner.masks, strict=True):
                    for value, keep in zip(replicas(kernel.variable), replicas(mask), strict=True):
                        assert not value[~keep].any(), kernel.name

    def on_epoch_end(self, epoch, logs=None):
        for name, variable in self.state():
            values = replicas(variable)
            same = len({value.tobytes() for value in values}) == 1
            # Each replica keeps what its own gradients have lost.
            if "gradient_error" in name:
                continue
            if name.endswith("zero_point"):
                assert values[0] == np.round(values[0]), (name, values)
            if not same or not np.isfinite(values[0].astype("float64")).all():
                self.found.append((epoch, name))


def train(strategy, make, callbacks=(), optimizer=None, x=X, y=Y):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = make()
        model.compile(optimizer() if optimizer else keras.optimizers.SGD(0.05), "mse")
    used = [make_callback() for make_callback in callbacks]
    watch = Watch(used)
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[*used, watch], **options)
    assert len(replicas(model.weights[0])) == strategy.num_replicas_in_sync
    assert not watch.found, watch.found
    return model, used


def both(*arguments, tolerance=1e-6, **options):
    """Trains on one device and on two replicas and compares all variables."""
    strategies = {ONE: tf.distribute.get_strategy(), TWO: mirrored()}
    runs = {name: train(each, *arguments, **options) for name, each in strategies.items()}
    one, two = (runs[name][0] for name in (ONE, TWO))
    for a, b in zip(one.variables, two.variables, strict=True):
        difference = np.abs(np.asarray(a, "float64") - np.asarray(b, "float64")).max(initial=0)
        assert difference <= tolerance, (a.path, difference)
        assert ((np.asarray(a) == 0) == (np.asarray(b) == 0)).all(), a.path
    return runs


# ---- the techniques ------------------------------------------------------------------------------

DECAY = tfc.PolynomialDecay(0.0, 0.75, 1, 5, frequency=1)
# One layer for each: they are all pruned in one training.
PRUNINGS = [
    (tfc.ConstantSparsity(0.5), {}),
    (DECAY, {"criterion": "l2", "pattern": "channels"}),
    (tfc.CosineSchedule(0.0, 0.75, 1, 5, frequency=1), {"criterion": "random"}),
    (DECAY, {"criterion": "movement"}),
    (DECAY, {"criterion": "taylor"}),
    (DECAY, {"criterion": "fisher"}),
    (tfc.ConstantSparsity(0.5, 0, 0), {"criterion": "snip"}),
    (DECAY, {"criterion": "entropy", "pattern": tfc.Block(1, 4)}),
    (tfc.ConstantSparsity(0.5), {"pattern": tfc.NOfM(2, 4)}),
    (tfc.DynamicNetworkSurgery(DECAY, frequency=1), {}),
    (tfc.SET(0.75, 6, frequency=2), {}),
    (tfc.RigL(0.75, 6, frequency=2), {}),
    (tfc.MetricGuided("loss", 10.0), {}),
]


def dense():
    # Side by side: fewer calls to trace than one after another, and gradients reach all of them.
    inputs = keras.Input((8,))
    branches = [L.Dense(8, "tanh", name=f"d{i:02d}")(inputs) for i in range(len(PRUNINGS) + 3)]
    return keras.Model(inputs, L.Dense(3, name="out")(L.Average()(branches)))


def pruning_methods():
    def pruning(index, schedule, options):
        options = {"data": (X[:32], Y[:32]), **options}
        return lambda: tfc.callbacks.Pruning(
            schedule, layers=f"d{index:02d}", verbose=0, scoring=SCORING, **options
        )

    last = len(PRUNINGS)
    callbacks = [pruning(i, *of) for i, of in enumerate(PRUNINGS)]
    callbacks += [
        lambda: tfc.callbacks.ThresholdPruning(
            3, num_std=0.5, l1=1e-3, layers=f"d{last:02d}", verbose=0
        ),
        lambda: tfc.callbacks.Regularization(l1=1e-3, l2=1e-3, layers=f"d{last + 1:02d}"),
        lambda: tfc.callbacks.Regularization(l1=0.05, proximal=True, layers=f"d{last + 2:02d}"),
    ]
    runs = both(dense, callbacks)
    for one, two in zip(*(runs[name][1] for name in (ONE, TWO)), strict=True):
        if isinstance(one, tfc.callbacks.Pruning):
            assert one.pruner.overall_sparsity() > 0.2, one.pruner.names
            for a, b in zip(one.pruner.masks, two.pruner.masks, strict=True):
                assert (a.numpy() == b.numpy()).all(), a.path


SCORING = tfc.ScoringOptions(num_batches=1)


def small(normalized=False, name=None):
    inputs = keras.Input((8,))
    x = L.Dense(16, name="hidden")(inputs)
    x = L.BatchNormalization(name="norm")(x) if normalized else x
    return keras.Model(inputs, L.Dense(3, name="out")(L.ReLU()(x)), name=name)


def channels_and_a_cached_teacher():
    keras.utils.set_random_seed(1)
    cache = tfc.TeacherCache.compute(small(name="teacher"), X)
    loss = tfc.LogitsDistillation(teacher_from_logits=True, student_from_logits=True)
    schedule = tfc.PolynomialDecay(0.0, 0.5, 0, 5, frequency=1)
    runs = both(
        lambda: tfc.Distiller(cache, small(), loss),
        [lambda: tfc.callbacks.ChannelPruning(schedule, round_to=1, verbose=0)],
        x=cache.pair(X),
    )
    student = runs[TWO][0].student
    assert (np.asarray(student.get_layer("hidden").kernel) == 0).all(0).sum() >= 7


def criteria_that_read_data():
    """Channel masks by each, from data of which one batch has no sample."""
    data = [(X[:0], Y[:0]), (X[:16], Y[:16])]
    zeros = {}
    for name, strategy in ((ONE, tf.distribute.get_strategy()), (TWO, mirrored())):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = small(True)
            model.compile("sgd", "mse")
        start = model.get_weights()
        for criterion in ("apoz", "activation_mean", "activation_entropy", "taylor", "entropy"):
            model.set_weights(start)
            options = {"criterion": criterion, "data": data, "round_to": 1}
            with tfc.ChannelPruner(model, tfc.ConstantSparsity(0.5), **options) as pruner:
                pruner.update(0)
            kernel = model.get_layer("hidden").kernel
            assert len({value.tobytes() for value in replicas(kernel)}) == 1, criterion
            zeros[name, criterion] = (np.asarray(kernel) == 0).all(0)
            assert 7 <= zeros[name, criterion].sum() < 16, criterion
    for (name, criterion), found in zeros.items():
        assert (found == zeros[ONE, criterion]).all(), (name, criterion)


def clusters():
    both(
        lambda: tfc.cluster(small(), 4),
        [lambda: tfc.callbacks.Clustering(2)],
        # The order in which gradients of a centroid's weights are summed.
        tolerance=1e-5,
    )


def quantized_gradients():
    def gradients():
        return tfc.QuantizedGradients(keras.optimizers.SGD(0.05), 8)

    # Each replica rounds its own gradients.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = both(small, optimizer=gradients, tolerance=1e-3)
    said = [str(w.message) for w in caught if "save nothing under Mirrored" in str(w.message)]
    assert len(said) == 1, caught
    # Keeps its own errors too, in backups as well.
    optimizer = runs[TWO][0].optimizer
    state = ReplicaState(optimizer, mirrored())
    errors = state.values()
    assert [e.shape for e in errors] == [(2, *v.shape) for v in optimizer.replica_variables]
    assert all((error[0] != error[1]).any() for error in errors)
    state.assign([error[::-1] for error in errors])
    for error, swapped in zip(errors, state.values(), strict=True):
        np.testing.assert_array_equal(swapped, error[::-1])
    # Three replicas before: two have equal shares of what all were owed.
    state.assign([np.stack([error[0]] * 3) for error in errors])
    for error, shares in zip(errors, state.values(), strict=True):
        np.testing.assert_allclose(shares, [1.5 * error[0]] * 2, rtol=1e-6)


def quantized_clustered_distilled():
    """Batch norm, ranges, grids and codebooks; then everything that is done with a model."""
    strategy = mirrored()

    def make():
        student = tfc.quantize(tfc.cluster(small(True), 4), calibration_data=X)
        stated = {"teacher_from_logits": True, "student_from_logits": True}
        return tfc.Distiller(small(name="teacher"), student, tfc.LogitsDistillation(**stated))

    distiller, _ = train(
        strategy,
        make,
        [
            lambda: tfc.callbacks.Clustering(2),
            lambda: tfc.callbacks.QuantizationSchedule(1, 4, 5),
            lambda: tfc.callbacks.DistillationSchedule(temperature=lambda step: 1.0 + step),
        ],
        # Of the last batch one replica gets a sample, and the other none.
        x=X[:33],
        y=Y[:33],
    )
    model = distiller.student
    norm = model.get_layer("norm")
    assert len(replicas(norm.moving_mean)) == 2
    expected = np.asarray(model(X))
    predicted = model.predict(X, batch_size=20, verbose=0)
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name)
        with strategy.scope():
            model.save(path / "model.keras")
            loaded = keras.saving.load_model(path / "model.keras")
            plain = tfc.strip(model)
            report = tfc.export_tflite(model, path / "model.tflite")
        for each in (loaded, keras.saving.load_model(path / "model.keras")):
            np.testing.assert_array_equal(np.asarray(each(X)), expected)
        assert all(np.isfinite(w).all() for w in plain.get_weights())
        assert report.agreement == 1.0, report.agreement


def a_replica_without_samples():
    """Depthwise kernels, whose gradient of no samples TensorFlow leaves unwritten."""
    x = np.random.default_rng(2).normal(size=(17, 6, 6, 4)).astype("float32")
    y = np.arange(17) % 3

    def make():
        inputs = keras.Input((6, 6, 4))
        outputs = L.DepthwiseConv2D(3, name="depthwise")(inputs)
        return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(outputs)))

    def fill_memory(batch, logs=None):
        held = [tf.fill((36,), np.float32(1e30)) for _ in range(60)]
        del held

    filling = keras.callbacks.LambdaCallback(on_train_batch_begin=fill_memory)
    with mirrored().scope():
        plain, ours = make(), tfc.quantize(make(), calibration_data=x)
        for model in (plain, ours):
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.01), loss)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    ours.fit(x, y, epochs=3, callbacks=[filling], **options)
    assert all(np.abs(w).max() < 100 for w in ours.get_weights())
    pruning = tfc.callbacks.Pruning(tfc.ConstantSparsity(0.5), verbose=0)
    weights = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(plain.get_weights())
    )
    said = "Training stops at a batch of fewer than 2 samples.*depthwise.*drop_remainder=True"
    with (
        pytest.warns(UserWarning, match=said),
        pytest.raises(tf.errors.InvalidArgumentError, match="where depthwise would make weights"),
    ):
        plain.fit(x, y, callbacks=[pruning, filling, note], **options)
    assert len(weights) == 2
    for before, after in zip(weights[-1], plain.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def what_keras_cannot_do():
    strategy = mirrored()
    with strategy.scope():
        model = small()
        model.compile("sgd", "mse", steps_per_execution=2)
        quantized = tfc.quantize(small(), calibration_data=X)
        quantized.compile("sgd", "mse", steps_per_execution=2)
        normalized = small(True)
        normalized.compile("sgd", "mse")
    pruning = tfc.callbacks.Pruning(tfc.ConstantSparsity(0.5), verbose=0)
    for refused, callbacks in ((model, [pruning]), (quantized, [])):
        with pytest.raises(ValueError, match="steps_per_execution=1 on 2 replicas"):
            refused.fit(X, Y, callbacks=callbacks, verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pruning.set_model(normalized)
        pruning.set_model(normalized)
    said = [str(w.message) for w in caught if "Batch norm of norm" in str(w.message)]
    assert len(said) == 1, caught
    assert "drop_remainder=True" in said[0]


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    pruning_methods()
    channels_and_a_cached_teacher()
    criteria_that_read_data()
    clusters()
    quantized_gradients()
    quantized_clustered_distilled()
    a_replica_without_samples()
    what_keras_cannot_do()


if __name__ == "__main__":
    main()
