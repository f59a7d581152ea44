"""A train step is traced once, whatever it makes variables for."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.distillation import Distiller, LogitsDistillation

X, Y = np.random.default_rng(0).uniform(0, 1, (64, 6)).astype(np.float32), np.arange(64) % 3


class Counted(layers.Layer):
    """Counts its calls in training: one for every trace of the step."""

    traces = 0

    def call(self, inputs, training=False):
        Counted.traces += bool(training)
        return inputs


# Traced, it would be taken apart, and nobody would call it.
tfc.register_operator(Counted, role="move")


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(heads: int = 1, **options) -> keras.Model:
    inputs = keras.Input((6,))
    x = Counted()(layers.Dense(4, activation="relu", **options)(inputs))
    outputs = [layers.Dense(3, name=f"head_{i}")(x) for i in range(heads)]
    return keras.Model(inputs, outputs if heads > 1 else outputs[0])


def traces_of(model, y=Y, **arguments) -> int:
    Counted.traces = 0
    model.fit(X, y, batch_size=8, verbose=0, **arguments)
    return Counted.traces


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metrics": ["accuracy"]},
        {"weighted_metrics": ["accuracy"], "steps_per_execution": 4},
    ],
    ids=["plain", "metrics", "weighted"],
)
def test_a_quantized_model_is_traced_once(options):
    model = tfc.quantize(network(), calibration_data=X)
    model.compile("adam", cross_entropy(), **options)
    assert traces_of(model, sample_weight=np.ones(64)) == 1
    assert traces_of(model, sample_weight=np.ones(64)) == 0
    # It is the step that ran, and no more than that.
    assert int(model.optimizer.iterations.numpy()) == 16
    model.compile("adam", cross_entropy(), **options)
    assert traces_of(model, sample_weight=np.ones(64)) == 1


def test_several_outputs_with_losses_and_metrics_of_their_own():
    model = tfc.quantize(network(heads=2), calibration_data=X)
    losses = {f"head_{i}": cross_entropy() for i in range(2)}
    model.compile("adam", losses, metrics={"head_0": ["accuracy"]})
    assert traces_of(model, {"head_0": Y, "head_1": Y}) == 1


def test_what_layers_add_to_the_loss_stays_in_its_graph():
    model = tfc.quantize(network(kernel_regularizer="l2"), calibration_data=X)
    model.compile("adam", cross_entropy(), metrics=["accuracy"])
    model.evaluate(X, Y, verbose=0)
    assert traces_of(model) == 1


def test_parts_of_a_batch_that_are_none():
    model = tfc.quantize(network(), calibration_data=X)
    model.compile("adam", cross_entropy(), metrics=["accuracy"])
    Counted.traces = 0
    model.fit(((X[:8], Y[:8], None) for _ in range(4)), steps_per_epoch=4, shuffle=False, verbose=0)
    assert Counted.traces == 1


@pytest.mark.parametrize("labels", [True, False])
def test_a_distiller_is_traced_once(labels):
    student = tfc.quantize(network(), calibration_data=X)
    model = Distiller(
        keras.Sequential([keras.Input((6,)), layers.Dense(3)]),
        student,
        [LogitsDistillation()],
        student_loss_weight=float(labels),
    )
    model.compile("adam", cross_entropy() if labels else None)
    assert traces_of(model, Y if labels else None) == 1


def test_batches_by_hand_and_eager_steps_train_the_same():
    weights = []
    for run_eagerly in (False, True):
        keras.utils.set_random_seed(0)
        model = tfc.quantize(network(), calibration_data=X)
        model.compile("adam", cross_entropy(), metrics=["accuracy"], run_eagerly=run_eagerly)
        for _ in range(2):
            model.train_on_batch(X, Y)
        model.fit(X, Y, batch_size=32, shuffle=False, verbose=0)
        weights.append([v.numpy() for v in model.trainable_variables])
    for graph, eager in zip(*weights, strict=True):
        np.testing.assert_allclose(graph, eager, atol=1e-5)
