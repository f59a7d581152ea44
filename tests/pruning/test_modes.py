"""Masks hold after every step in every mode of `fit`, looked at in the forward pass itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfcompress.pruning import (
    SET,
    ConstantSparsity,
    DynamicNetworkSurgery,
    MetricGuided,
    PolynomialDecay,
)
from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.masks import constraints as masks
from tfcompress.pruning.pruner import Pruner
from tfcompress.pruning.regularization.callback import Regularization


class Watch(Pruning):
    """Shows the masks to the model, so that its forward pass can look at them."""

    def _make_pruner(self):
        super()._make_pruner()
        names = [kernel.layer.name for kernel in self.pruner.kernels]
        self.model.watch(list(zip(names, self.pruner.masks, strict=True)))


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def prune(model, data, method=None, callbacks=(), **options):
    callback = Watch(method or ConstantSparsity(0.75, frequency=2), verbose=0, **options)
    model.fit(*data, batch_size=16, epochs=2, callbacks=[*callbacks, callback], verbose=0)
    return callback


def assert_held(model, callback):
    assert float(model.leak.numpy()) == 0.0
    for kernel, mask in zip(callback.pruner.kernels, callback.pruner.masks, strict=True):
        value = kernel.variable.numpy()
        assert not value[~mask.numpy()].any()
        assert (value == 0).mean() >= 0.74
        assert np.isfinite(value).all()


def sgd(**options):
    return keras.optimizers.SGD(0.05, momentum=0.9, **options)


MODES = {
    "plain": {},
    "jit": {"jit_compile": True},
    "steps_per_execution": {"steps_per_execution": 4},
    "jit, steps_per_execution": {"jit_compile": True, "steps_per_execution": 3},
    "eager": {"run_eagerly": True},
}
OPTIMIZERS = {
    "weight decay": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=1.0),
    "gradient accumulation": lambda: sgd(gradient_accumulation_steps=3),
    "EMA": lambda: sgd(use_ema=True, ema_momentum=0.9),
    "EMA, overwriting": lambda: sgd(use_ema=True, ema_overwrite_frequency=3),
    "loss scale": lambda: sgd(loss_scale_factor=128.0),
}


@pytest.mark.parametrize("mode", MODES)
def test_masks_hold_in_every_way_to_run_a_step(watched, blobs, mode):
    model = watched(**MODES[mode])
    assert_held(model, prune(model, blobs))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_hold_with_every_way_to_update(watched, blobs, optimizer):
    model = watched(OPTIMIZERS[optimizer]())
    assert_held(model, prune(model, blobs))


@pytest.mark.parametrize("mode", ["jit, steps_per_execution", "gradient accumulation"])
@pytest.mark.parametrize("method", ["movement", "surgery", "SET"])
def test_masks_of_weights_that_come_back_hold_too(watched, blobs, method, mode):
    # Of twelve batches, three make a step where gradients are accumulated.
    decay = PolynomialDecay(0.0, 0.75, 1, 3, frequency=1)
    schedule = {
        "movement": decay,
        "surgery": DynamicNetworkSurgery(decay, frequency=1),
        "SET": SET(0.75, 10, frequency=2, budget="uniform"),
    }[method]
    options = {"criterion": "movement"} if method == "movement" else {}
    optimizer = OPTIMIZERS[mode]() if mode in OPTIMIZERS else "adam"
    model = watched(optimizer, **MODES.get(mode, {}))
    callback = prune(model, blobs, schedule, **options)
    for kernel, mask in zip(callback.pruner.kernels, callback.pruner.masks, strict=True):
        assert not kernel.variable.numpy()[~mask.numpy()].any()
        assert (mask.numpy() == 0).mean() == pytest.approx(0.75, abs=0.02)
    # What any step computed with, not only the last.
    assert float(model.leak.numpy()) == 0.0


def test_averages_that_are_validated_hold_the_masks(watched, blobs):
    model = watched(OPTIMIZERS["EMA"]())
    callback = Watch(ConstantSparsity(0.75, begin_step=3, frequency=2), verbose=0)
    callbacks = [keras.callbacks.SwapEMAWeights(), callback]
    options = {"validation_data": blobs, "batch_size": 16, "epochs": 3, "verbose": 0}
    model.fit(*blobs, callbacks=callbacks, **options)
    assert_held(model, callback)


def several_optimizers():
    by_layer = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.01), {".*logits.*": sgd()})
    return keras.optimizers.MultiOptimizer(by_layer)


def test_masks_hold_with_several_optimizers(watched, blobs):
    model = watched(several_optimizers())
    assert_held(model, prune(model, blobs))
    with pytest.raises(ValueError, match="the learning rate of one optimizer"):
        model.fit(*blobs, callbacks=[Regularization(l1=0.1, proximal=True)], verbose=0)


def test_a_loop_of_train_on_batch_holds_the_masks_of_a_fitted_model(watched, blobs):
    model = watched()
    model.fit(*blobs, batch_size=16, verbose=0)
    model.leak.assign(0.0)
    with Pruner(model, ConstantSparsity(0.75)) as pruner:
        pruner.update(pruner.clock())
        model.watch([(k.layer.name, m) for k, m in zip(pruner.kernels, pruner.masks, strict=True)])
        for _ in range(3):
            model.train_on_batch(*blobs)
        assert float(model.leak.numpy()) == 0.0


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_masks_hold_in_mixed_precision(watched, blobs, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = watched()
        assert_held(model, prune(model, blobs))
    finally:
        keras.config.set_dtype_policy("float32")


def test_positive_control_without_the_constraint_removed_weights_come_back(
    watched, blobs, monkeypatch
):
    monkeypatch.setattr(masks, "attach", lambda variable, constraint: None)
    monkeypatch.setattr(Pruning, "_check_constraints", lambda self: None)
    model = watched()
    prune(model, blobs)
    assert float(model.leak.numpy()) > 1e-3


def test_positive_control_with_an_old_trace_removed_weights_come_back(watched, blobs):
    model = watched()
    model.fit(*blobs, batch_size=16, verbose=0)
    kept = model.train_function
    pruner = Pruner(model, ConstantSparsity(0.75))
    pruner.update(0)
    model.train_function = kept
    model.fit(*blobs, batch_size=16, verbose=0)
    assert not np.all([(k.variable.numpy() == 0).mean() > 0.7 for k in pruner.kernels])


def test_a_model_that_was_fitted_before(watched, blobs):
    model = watched()
    model.fit(*blobs, batch_size=16, verbose=0)
    model.leak.assign(0.0)
    assert_held(model, prune(model, blobs))


def test_second_fit_with_and_without_the_callback(watched, blobs):
    model = watched()
    first = prune(model, blobs)
    before = [mask.numpy() for mask in first.pruner.masks]
    second = prune(model, blobs)
    assert_held(model, second)
    for old, new in zip(before, second.pruner.masks, strict=True):
        assert not (new.numpy() & ~old).any()
    assert all(kernel.variable.constraint is None for kernel in second.pruner.kernels)
    model.watch([])
    model.fit(*blobs, batch_size=16, verbose=0)
    assert all((k.variable.numpy() == 0).mean() < 0.1 for k in second.pruner.kernels)


def test_tf_data(watched, blobs):
    model = watched()
    data = tf.data.Dataset.from_tensor_slices(blobs).batch(16)
    callback = Watch(ConstantSparsity(0.75), verbose=0)
    model.fit(data, epochs=2, shuffle=False, callbacks=[callback], verbose=0)
    assert_held(model, callback)


def test_a_model_that_builds_itself_in_the_first_step(watched, blobs):
    model = watched.kind()
    model.compile("adam", cross_entropy())
    callback = prune(model, blobs)
    assert_held(model, callback)


def test_an_interrupted_fit_leaves_nothing_that_counts_twice(watched, blobs):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = watched()
    with pytest.raises(KeyboardInterrupt):
        prune(model, blobs, callbacks=[Interrupt()])
    callback = prune(model, blobs)
    assert_held(model, callback)
    assert all(kernel.variable.constraint is None for kernel in callback.pruner.kernels)


def test_existing_constraints_are_composed(blobs):
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Flatten()(inputs)
    limit = keras.constraints.MaxNorm(0.5)
    model = keras.Model(inputs, keras.layers.Dense(3, kernel_constraint=limit, name="d")(x))
    model.compile("sgd", cross_entropy())
    model.fit(*blobs, verbose=0, callbacks=[Pruning(ConstantSparsity(0.5), verbose=0)])
    kernel = model.get_layer("d").kernel
    assert (kernel.numpy() == 0).mean() == 0.5
    assert np.linalg.norm(kernel.numpy(), axis=0).max() <= 0.5001
    assert kernel.constraint is limit


def test_two_callbacks_share_a_model_but_not_a_kernel(watched, blobs):
    model = watched()
    pair = [
        Pruning(ConstantSparsity(0.5), layers="convolution", verbose=0),
        Pruning(ConstantSparsity(0.9), layers="logits", verbose=0),
    ]
    model.fit(*blobs, epochs=2, verbose=0, callbacks=pair)
    assert (model.convolution.kernel.numpy() == 0).mean() == 0.5
    assert (model.logits.kernel.numpy() == 0).mean() == pytest.approx(0.9, abs=0.01)
    pair[1] = Pruning(ConstantSparsity(0.9), verbose=0)
    with pytest.raises(ValueError, match=r"Two Pruning callbacks act on.*convolution"):
        model.fit(*blobs, verbose=0, callbacks=pair)


def test_nested_and_shared_layers(blobs):
    shared = keras.layers.Dense(16, activation="relu", name="shared")
    inner_in = keras.Input((16,))
    inner = keras.Model(inner_in, shared(keras.layers.Dense(16, name="inside")(shared(inner_in))))
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Dense(16, name="first")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(inner(x)))
    model.compile("adam", cross_entropy())
    callback = Pruning(PolynomialDecay(0.2, 0.8, 0, 5, frequency=1), verbose=0)
    model.fit(*blobs, epochs=2, verbose=0, callbacks=[callback])
    assert set(callback.pruner.names) == {"first", "shared", "inside", "last"}
    for kernel in callback.pruner.kernels:
        size = kernel.variable.numpy().size
        assert (kernel.variable.numpy() == 0).sum() == size - round(size * 0.2)


def test_custom_training_loop(watched, blobs):
    model = watched(keras.optimizers.Adam(0.01))
    x, y = (tf.constant(part) for part in blobs)
    with Pruner(model, PolynomialDecay(0.0, 0.75, 0, 6, frequency=2)) as pruner:
        model.watch([(k.layer.name, m) for k, m in zip(pruner.kernels, pruner.masks, strict=True)])

        @tf.function
        def train_step():
            with tf.GradientTape() as tape:
                loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=True))
            variables = model.trainable_variables
            model.optimizer.apply(tape.gradient(loss, variables), variables)

        changed = [pruner.update(0)]
        for step in range(1, 9):
            train_step()
            changed.append(pruner.update(step))
        assert changed == [True, False, True, False, True, False, True, False, False]
    assert float(model.leak.numpy()) == 0.0
    assert pruner.overall_sparsity() == pytest.approx(0.75, abs=0.01)


def test_a_loop_that_breaks_off_leaves_no_constraint(watched):
    pruner = Pruner(watched(), MetricGuided("accuracy"))

    def loop():
        with pruner:
            pruner.update(0)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        loop()
    assert not any(masks.attached(kernel.variable) for kernel in pruner.kernels)


def test_custom_loop_without_a_keras_optimizer(watched, blobs):
    model = watched()
    pruner = Pruner(model, ConstantSparsity(0.75))
    for step in range(3):
        for variable in model.trainable_variables:
            variable.assign_add(0.1 * keras.random.normal(variable.shape))
        pruner.update(step)
        for kernel, mask in zip(pruner.kernels, pruner.masks, strict=True):
            assert not kernel.variable.numpy()[~mask.numpy()].any()
    pruner.finish()
