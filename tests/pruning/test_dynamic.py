"""Methods that move or choose the sparsity themselves."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcompress.pruning import (
    SET,
    DynamicNetworkSurgery,
    MetricGuided,
    NOfM,
    PolynomialDecay,
    Pruner,
    RigL,
    ScoringOptions,
)
from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.masks import budgets
from tfcompress.pruning.methods.sparse_training import move
from tfcompress.pruning.methods.surgery import splice


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6))
def test_erk_budget_is_met_and_proportional(shapes):
    densities = np.array(budgets.erdos_renyi_kernel(shapes, 0.8))
    sizes = np.array([np.prod(s) for s in shapes])
    assert (densities * sizes).sum() == pytest.approx(0.2 * sizes.sum())
    assert np.all((densities > 0) & (densities <= 1 + 1e-9))
    raw = np.array([sum(s) / np.prod(s) for s in shapes])
    free = densities < 1 - 1e-9
    if free.sum() > 1:
        ratio = densities[free] / raw[free]
        np.testing.assert_allclose(ratio, ratio[0])


def test_uniform_budget():
    assert budgets.uniform([(3, 4), (100, 100)], 0.75) == [0.25, 0.25]


@given(st.integers(0, 10**6), st.floats(0, 0.9), st.floats(0.1, 0.9))
def test_move_drops_the_smallest_and_grows_the_best(seed, fraction, density):
    rng = np.random.default_rng(seed)
    active = rng.random(50) < density
    active[0] = True
    magnitude = rng.random(50) * active
    growth = rng.random(50)
    keep = move(active, magnitude, growth, fraction)
    total = active.sum()
    moving = min(int(fraction * total), total - 1)
    assert keep.sum() == total
    survivors = np.argsort(np.where(active, -magnitude, np.inf), kind="stable")[: total - moving]
    expected = np.zeros(50, bool)
    expected[survivors] = True
    candidates = np.where(expected, -np.inf, growth)
    expected[np.argsort(-candidates, kind="stable")[:moving]] = True
    np.testing.assert_array_equal(keep, expected)


@given(st.integers(0, 10**6), st.floats(0, 0.5))
def test_splice_has_hysteresis(seed, margin):
    rng = np.random.default_rng(seed)
    magnitude = rng.random(40)
    target = magnitude >= np.sort(magnitude)[25]
    current = rng.random(40) < 0.5
    keep = splice(magnitude, target, current, margin)
    t = magnitude[target].min()
    for i in range(40):
        if magnitude[i] < (1 - margin) * t:
            assert not keep[i]
        elif magnitude[i] > (1 + margin) * t:
            assert keep[i]
        else:
            assert keep[i] == current[i]


def test_drop_fractions():
    rigl = RigL(0.9, end_step=100, drop_fraction=0.3)
    assert rigl.drop_fraction_at(0) == pytest.approx(0.3)
    assert rigl.drop_fraction_at(50) == pytest.approx(0.15)
    assert rigl.drop_fraction_at(100) == pytest.approx(0.0)
    assert SET(0.9, end_step=100, drop_fraction=0.3).drop_fraction_at(80) == 0.3


def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu", name="first"),
            keras.layers.Dense(3, name="last"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"])
    return model


def test_rigl_grows_where_the_gradient_is_largest(blobs):
    model = build()
    batch = (blobs[0][:32], blobs[1][:32])
    pruner = Pruner(model, RigL(0.5, 10, frequency=1, drop_fraction=0.5, budget="uniform"))
    pruner.update(0, batch=batch)
    before = [m.numpy() for m in pruner.masks]
    weights = [k.variable.numpy() for k in pruner.kernels]
    gradients = pruner.evidence.statistics.gradients(batch)
    assert pruner.update(1, batch=batch)
    fraction = pruner.method.drop_fraction_at(1)
    for mask, old, w, g in zip(pruner.masks, before, weights, gradients, strict=True):
        expected = move(old.ravel(), np.abs(w).ravel(), np.abs(g).ravel(), fraction)
        np.testing.assert_array_equal(mask.numpy().ravel(), expected)
        assert (mask.numpy() & ~old).any()
    pruner.detach()


@pytest.mark.parametrize("method", [SET, RigL])
def test_sparse_training_keeps_its_budget_while_connections_move(method, blobs):
    model = build()
    callback = Pruning(
        method(0.7, 20, frequency=2), data=blobs, scoring=ScoringOptions(num_batches=1), verbose=0
    )
    masks = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            masks.append(np.concatenate([m.numpy().ravel() for m in callback.pruner.masks]))

    model.fit(*blobs, batch_size=16, epochs=2, verbose=0, callbacks=[callback, Record()])
    assert {m.sum() for m in masks} == {masks[0].sum()}
    assert masks[0].sum() == pytest.approx(0.3 * masks[0].size, abs=2)
    assert (masks[-1] & ~masks[0]).any()


def test_zeros_of_an_earlier_run_may_grow_again(blobs):
    model = build()
    kernel = model.get_layer("first").kernel
    value = kernel.numpy()
    value[:36] = 0
    kernel.assign(value)
    callback = Pruning(SET(0.5, 20, frequency=1, budget="uniform"), layers="first", verbose=0)
    model.fit(*blobs, batch_size=16, epochs=1, verbose=0, callbacks=[callback])
    assert callback.pruner.overall_sparsity() == 0.5
    assert kernel.numpy()[:36].any()


def test_surgery_equals_a_numpy_simulation(blobs):
    x, y = blobs[0][:32].reshape(32, -1), blobs[1][:32]
    model = build()
    model.compile(keras.optimizers.SGD(0.1), model.loss)
    latent = model.get_layer("last").kernel.numpy()
    first = model.get_layer("first")
    w1, b1 = first.kernel.numpy(), first.bias.numpy()
    first.trainable = False
    schedule = PolynomialDecay(0.5, 0.8, 0, 4, power=1, frequency=1)
    surgery = DynamicNetworkSurgery(schedule, margin=0.1, frequency=1)
    callback = Pruning(surgery, layers="last", verbose=0)
    model.fit(
        blobs[0][:32], y, batch_size=32, epochs=6, shuffle=False, verbose=0, callbacks=[callback]
    )
    hidden = np.maximum(x @ w1 + b1, 0)
    bias, mask = np.zeros(3, np.float32), np.ones(latent.shape, bool)
    for step in range(7):
        if step <= 4:
            m = np.abs(latent)
            kept = round(m.size * (1 - schedule.sparsity(step)))
            if step == 4:
                m = np.where(mask, m, m * 2.0**-40)
                mask = m >= np.sort(m.ravel())[-kept]
            else:
                target = m >= np.sort(m.ravel())[-kept]
                mask = splice(m.ravel(), target.ravel(), mask.ravel(), 0.1).reshape(m.shape)
        if step == 6:
            break
        logits = hidden @ (latent * mask) + bias
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(32), y] -= 1
        latent = latent - 0.1 * hidden.T @ p / 32
        bias = bias - 0.1 * p.mean(axis=0)
    np.testing.assert_allclose(
        model.get_layer("last").kernel.numpy(), latent * mask, rtol=1e-3, atol=1e-5
    )


def test_movement_accumulates_what_the_optimizer_did(blobs):
    model = build()
    kernel = model.get_layer("last").kernel
    track = [kernel.numpy()]
    callback = Pruning(
        PolynomialDecay(0, 0.5, 4, 8, frequency=4), criterion="movement", layers="last", verbose=0
    )

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            track.append(kernel.numpy())

    model.fit(*blobs, batch_size=24, epochs=1, verbose=0, callbacks=[Record(), callback])
    expected = sum(w * (new - w) for w, new in itertools.pairwise(track))
    scores = callback.pruner.state.variables["scores_0"].numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-7)


class Metric:
    """Drives a pruner with a made-up metric of its sparsity."""

    def __init__(self, limit, **options):
        self.model = build()
        self.pruner = Pruner(self.model, MetricGuided("quality", 0.01, mode="max", **options))
        self.limit = limit

    def run(self, epochs):
        self.pruner.update(0)
        for step in range(1, epochs + 1):
            good = self.pruner.overall_sparsity() <= self.limit
            self.pruner.update(step, metrics={"quality": 0.9 if good else 0.8})
        self.pruner.finish()
        return self.pruner.overall_sparsity()


@pytest.mark.parametrize("limit", [0.0, 0.4, 0.77, 0.93])
def test_metric_guided_ends_at_the_largest_sparsity_that_held(limit):
    guided = Metric(limit, rate=0.3, min_rate=0.01, patience=1)
    reached = guided.run(60)
    assert limit - 0.03 <= reached <= limit + 1e-9
    kernels = [k.variable.numpy() for k in guided.pruner.kernels]
    zeros = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
    assert zeros == pytest.approx(reached)


def test_metric_guided_brings_back_the_weights_that_held():
    guided = Metric(0.5, rate=0.4, patience=2)
    pruner = guided.pruner
    pruner.update(0)
    pruner.update(1, metrics={"quality": 0.9})
    assert pruner.overall_sparsity() == pytest.approx(0.4, abs=0.01)
    held = [v.numpy() for v in guided.model.weights]
    pruner.update(2, metrics={"quality": 0.9})
    guided.model.weights[1].assign_add(guided.model.weights[1] + 5)
    assert not pruner.update(3, metrics={"quality": 0.7})
    assert pruner.update(4, metrics={"quality": 0.7})
    # Back at 0.4 and on from there with half the rate.
    assert pruner.overall_sparsity() == pytest.approx(1 - 0.6 * 0.8, abs=0.01)
    pruner.finish()
    for old, variable in zip(held, guided.model.weights, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_metric_guided_in_a_fit(blobs):
    model = build()
    callback = Pruning(MetricGuided("val_accuracy", 0.05, rate=0.5, patience=1), verbose=0)
    history = model.fit(
        *blobs, epochs=12, verbose=0, callbacks=[callback], validation_data=blobs
    ).history
    accuracy = model.evaluate(*blobs, verbose=0)[1]
    assert accuracy >= history["val_accuracy"][0] - 0.05 - 1e-6
    assert callback.pruner.overall_sparsity() > 0
    assert callback.pruner.overall_sparsity() in [pytest.approx(s) for s in history["sparsity"]]


@pytest.mark.parametrize(
    ("monitor", "minimizes"),
    [
        *((name, True) for name in ("loss", "val_mae", "val_mean_absolute_error", "perplexity")),
        *((name, False) for name in ("val_accuracy", "acc", "val_top_k_acc", "auc", "mean_iou")),
    ],
)
def test_the_name_of_a_metric_tells_what_is_better(monitor, minimizes):
    assert MetricGuided(monitor).minimizes == minimizes


def test_a_metric_of_every_second_epoch_needs_a_baseline(blobs):
    model = build()
    options = {"validation_data": blobs, "validation_freq": 2, "verbose": 0}
    with pytest.raises(ValueError, match="give `baseline=`"):
        model.fit(*blobs, callbacks=[Pruning(MetricGuided(), verbose=0)], **options)
    callback = Pruning(MetricGuided(max_drop=1.0, baseline=0.5), verbose=0)
    model.fit(*blobs, epochs=4, callbacks=[callback], **options)
    assert callback.pruner.overall_sparsity() > 0
    del options["validation_data"], options["validation_freq"]
    callback = Pruning(MetricGuided(baseline=0.5), verbose=0)
    with pytest.raises(ValueError, match="nothing was pruned"):
        model.fit(*blobs, callbacks=[callback], **options)


def test_a_metric_that_is_not_there_is_told(blobs):
    callback = Pruning(MetricGuided("val_accuracy"), verbose=0)
    with pytest.raises(ValueError, match=r"validation_data.*'accuracy'"):
        build().fit(*blobs, verbose=0, callbacks=[callback])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RigL(1.0, 10), r"\[0, 1\)"),
        (lambda: RigL(0.5, 10, begin_step=11), "begin_step <= end_step"),
        (lambda: SET(0.5, 10, drop_fraction=1.0), "drop_fraction"),
        (lambda: SET(0.5, 10, budget="even"), "Received: budget='even'"),
        (lambda: SET(0.5, 10, frequency=0), "frequency"),
        (lambda: SET(0.5, 10, initial_mask="none"), "initial_mask"),
        (lambda: DynamicNetworkSurgery(PolynomialDecay(0, 0.5, 0, 5), margin=1), "margin"),
        (lambda: DynamicNetworkSurgery(PolynomialDecay(0, 0.5, 0, 5), frequency=0), "frequency"),
        (lambda: MetricGuided(max_drop=-1), "max_drop"),
        (lambda: MetricGuided(rate=0.1, min_rate=0.2), "min_rate <= rate"),
        (lambda: MetricGuided(patience=0), "patience"),
        (lambda: MetricGuided(mode="best"), "mode"),
        (lambda: MetricGuided("val_quality"), "Expected a metric whose name tells"),
        (lambda: MetricGuided(max_sparsity=1), "max_sparsity"),
        (lambda: Pruner(build(), SET(0.5, 10), pattern=NOfM(2, 4)), "moves single weights"),
        (lambda: Pruner(build(), SET(0.5, 10), criterion="taylor"), "its own rule"),
        (lambda: Pruner(build(), MetricGuided(), criterion="movement"), "at any time"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "method",
    [
        SET(0.5, 10, 1, 2, 0.2, "uniform", "magnitude"),
        RigL(0.5, 10, 1, 2, 0.2, "uniform", "magnitude"),
        DynamicNetworkSurgery(PolynomialDecay(0.1, 0.5, 1, 9, 2, 3), 0.2, 4),
        MetricGuided("loss", 0.2, 0.3, 0.4, 0.1, 5, 0.8, "min"),
    ],
)
def test_config_round_trip(method):
    config = keras.saving.serialize_keras_object(method)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(method)
    assert again.get_config() == method.get_config()
