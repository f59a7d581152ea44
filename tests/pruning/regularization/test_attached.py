"""Regularization: values and proximal steps against NumPy, in a real `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfcompress.model.kernels import KernelSpec
from tfcompress.pruning import ConstantSparsity
from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.methods.threshold import below_threshold
from tfcompress.pruning.regularization import penalties
from tfcompress.pruning.regularization.callback import Regularization
from tfcompress.pruning.threshold_pruning import ThresholdPruning

DENSE = KernelSpec("kernel", (-1,), (-2,))
X = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32)
matrices = hnp.arrays(np.float32, (5, 3), elements=st.floats(-4, 4, width=32))


def build(optimizer=None, **kernel_options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, name="hidden", **kernel_options),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(3, name="out"),
        ]
    )
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse")
    return model


def fit(model, *callbacks, **options):
    options = {"batch_size": 32, "epochs": 1, "verbose": 0, "shuffle": False, **options}
    return model.fit(X, Y, callbacks=list(callbacks), **options)


@given(w=matrices, t=st.floats(0, 2))
def test_soft_threshold(w, t):
    t = np.float32(t)
    got = penalties.soft_threshold(tf.constant(w), t).numpy()
    np.testing.assert_allclose(got, np.where(np.abs(w) > t, w - t * np.sign(w), 0), atol=1e-6)


@given(w=matrices, t=st.floats(0, 2))
def test_group_soft_threshold(w, t):
    t = np.float32(t)
    got = penalties.group_soft_threshold(tf.constant(w), t, DENSE).numpy()
    for column in range(3):
        norm = np.linalg.norm(w[:, column])
        scale = max(1 - np.sqrt(5) * t / norm, 0) if norm > 0 else 0
        np.testing.assert_allclose(got[:, column], w[:, column] * scale, atol=1e-4)


@pytest.mark.parametrize("kind", ["l1", "l2", "group_lasso"])
def test_proximal_operators_minimize_what_they_should(kind):
    rng = np.random.default_rng(2)
    w = tf.constant(rng.normal(size=(5, 3)).astype(np.float32))
    t = 0.3
    prox = {
        "l1": penalties.soft_threshold,
        "l2": penalties.shrink,
        "group_lasso": lambda w, t: penalties.group_soft_threshold(w, t, DENSE),
    }[kind]
    penalty = {
        "l1": penalties.l1_penalty,
        "l2": penalties.l2_penalty,
        "group_lasso": lambda w: penalties.group_lasso_penalty(w, DENSE),
    }[kind]

    def objective(u):
        return float(t * penalty(u) + tf.reduce_sum((u - w) ** 2) / 2)

    best = prox(w, t)
    for _ in range(50):
        other = best + 0.05 * rng.normal(size=w.shape).astype(np.float32)
        assert objective(best) <= objective(other) + 1e-5


def test_group_lasso_has_a_gradient_at_zero():
    w = tf.Variable(np.zeros((5, 3), np.float32))
    with tf.GradientTape() as tape:
        loss = penalties.group_lasso_penalty(w, DENSE)
    assert np.isfinite(tape.gradient(loss, w).numpy()).all()


def test_the_loss_gains_the_penalty_and_loses_it_afterwards():
    model = build(keras.optimizers.SGD(0.0), kernel_regularizer=keras.regularizers.L2(0.5))
    own = model.get_layer("hidden").kernel.regularizer
    kernels = [model.get_layer(n).kernel.numpy() for n in ("hidden", "out")]
    plain = model.evaluate(X, Y, verbose=0)
    trained = fit(model).history["loss"][0]
    callback = Regularization(l1=0.1, l2=0.2, group_lasso=0.3, batch_norm_scale=0.4)
    history = fit(model, callback, validation_data=(X, Y)).history
    expected = 0.4 * 4 + sum(
        0.1 * np.abs(k).sum()
        + 0.2 * (k**2).sum()
        + 0.3 * np.sqrt(k.shape[0]) * np.linalg.norm(k, axis=0).sum()
        for k in kernels
    )
    assert history["loss"][0] - trained == pytest.approx(expected, rel=1e-4)
    assert history["val_loss"][0] - plain == pytest.approx(expected, rel=0.05)
    assert model.get_layer("hidden").kernel.regularizer is own
    assert fit(model).history["loss"][0] == pytest.approx(trained, rel=1e-4)


@pytest.mark.stock
def test_the_schedule_moves_the_strength_without_a_new_trace():
    model = build(keras.optimizers.SGD(0.0))
    trained = fit(model).history["loss"][0]
    callback = Regularization(l1=1.0, schedule=lambda step: 0.5 * step, layers="out")
    # The optimizer has taken one step already.
    losses = fit(model, callback, epochs=3).history["loss"]
    penalty = np.abs(model.get_layer("out").kernel.numpy()).sum()
    np.testing.assert_allclose(
        np.array(losses) - trained, penalty * np.array([0.5, 1.0, 1.5]), rtol=1e-3
    )


def test_proximal_step_follows_the_optimizers():
    plain, proximal = build(), build()
    before = plain.get_layer("out").kernel.numpy()
    fit(plain)
    fit(proximal, Regularization(l1=2.0, layers="out", proximal=True))
    w = plain.get_layer("out").kernel.numpy()
    expected = np.sign(w) * np.maximum(np.abs(w) - 0.1 * 2.0, 0)
    np.testing.assert_allclose(proximal.get_layer("out").kernel.numpy(), expected, atol=1e-6)
    assert (expected == 0).any()
    assert not np.array_equal(before, w)
    assert proximal.get_layer("out").kernel.constraint is None


def test_proximal_waits_for_accumulated_gradients():
    plain, proximal = (
        build(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)) for _ in range(2)
    )
    callback = Regularization(l1=2.0, layers="out", proximal=True)
    before = plain.get_layer("out").kernel.numpy()
    fit(proximal, callback)
    np.testing.assert_array_equal(proximal.get_layer("out").kernel.numpy(), before)
    fit(plain, epochs=2)
    fit(proximal, callback)
    w = plain.get_layer("out").kernel.numpy()
    expected = np.sign(w) * np.maximum(np.abs(w) - 0.1 * 2.0, 0)
    np.testing.assert_allclose(proximal.get_layer("out").kernel.numpy(), expected, atol=1e-6)


def test_proximal_slimming_of_batch_norm_scales():
    model = build()
    fit(model, Regularization(batch_norm_scale=20.0, proximal=True))
    np.testing.assert_array_equal(model.get_layer("norm").gamma.numpy(), 0)


@pytest.mark.stock
def test_with_pruning_in_one_fit():
    for order in (1, -1):
        model = build()
        callbacks = [
            Pruning(ConstantSparsity(0.5), verbose=0),
            Regularization(l1=0.05, l2=0.05, proximal=True),
        ][::order]
        fit(model, *callbacks, epochs=3)
        for name in ("hidden", "out"):
            kernel = model.get_layer(name).kernel
            assert (kernel.numpy() == 0).mean() >= 0.5
            assert kernel.constraint is None


def test_an_interrupted_fit_leaves_no_second_penalty():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = build(keras.optimizers.SGD(0.0))
    with pytest.raises(KeyboardInterrupt):
        fit(model, Regularization(l1=1.0), Interrupt())
    fit(model, Regularization(l1=1.0))
    assert model.get_layer("out").kernel.regularizer is None


def test_two_callbacks_on_one_variable_are_refused():
    with pytest.raises(ValueError, match="Two Regularization callbacks"):
        fit(build(), Regularization(l1=1.0), Regularization(l2=1.0))
    fit(build(), Regularization(l1=1.0, layers="out"), Regularization(l2=1.0, layers="hidden"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regularization(), "at least one above 0"),
        (lambda: Regularization(l1=-1.0), r"Received: \{'l1': -1.0\}"),
        (lambda: fit(build(), Regularization(l1=1.0, layers="nobody")), "Received: 'nobody'"),
        (lambda: ThresholdPruning(0, threshold=0.1), "each >= 1"),
        (lambda: ThresholdPruning([5, 3], threshold=0.1), "ascending"),
        (lambda: ThresholdPruning(5), "exactly one"),
        (lambda: ThresholdPruning(5, threshold=0.1, num_std=1.0), "exactly one"),
        (lambda: ThresholdPruning(5, threshold=-0.1), "above 0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(w=matrices, c=st.floats(0.1, 3.0))
def test_below_threshold(w, c):
    mask = np.ones(w.shape, bool)
    absolute = below_threshold(w, mask, c, None)
    np.testing.assert_array_equal(absolute, np.abs(w) >= min(c, np.abs(w).max()))
    relative = below_threshold(w, mask, None, c)
    limit = min(c * float(np.std(w)), float(np.abs(w).max()))
    np.testing.assert_array_equal(relative, np.abs(w) >= limit)
    assert relative.any()


def test_threshold_pruning_regularizes_cuts_and_finetunes():
    model = build(keras.optimizers.SGD(0.05))
    callback = ThresholdPruning(4, num_std=0.5, l1=0.05, verbose=0)
    seen = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = model.get_layer("out").kernel.numpy()
            seen.append(((kernel == 0).mean(), float(callback.regularization.factor.numpy())))

    fit(model, callback, Record(), epochs=7)
    zeros, factors = zip(*seen, strict=True)
    assert factors == (1.0,) * 4 + (0.0,) * 3
    assert zeros[:3] == (0, 0, 0)
    assert zeros[3] > 0
    assert len(set(zeros[3:])) == 1


@pytest.mark.parametrize(
    "options", [{"l2": 0.05}, {"l1": 0.05, "proximal": True}, {"l1": 0.05, "l2": 0.05}]
)
def test_threshold_pruning_leaves_what_it_will_not_cut_alone(options):
    model = build(keras.optimizers.SGD(0.05))
    callback = ThresholdPruning(
        np.array([2, 5]), threshold=0.1, layers=["hidden", "out"], skip_first_last=True, **options
    )
    with pytest.raises(ValueError, match="No layer with a kernel was matched"):
        fit(model, callback, epochs=1)
    callback = ThresholdPruning(np.array([2, 5]), threshold=0.1, layers="out", verbose=0, **options)
    callback.set_model(model)
    targets = [piece.target.variable for piece in callback.regularization.pieces]
    assert targets == [model.get_layer("out").kernel]
    callback.on_train_end()
    fit(model, callback, epochs=7)
    kernel = model.get_layer("out").kernel.numpy()
    assert (kernel == 0).any()
    assert callback.pruner.sparsity() == {"out": pytest.approx((kernel == 0).mean())}
