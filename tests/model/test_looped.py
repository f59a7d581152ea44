"""Loops of a graph: recurrent layers that were taken apart, run as loops and step by step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.model.graph import Graph
from tfcompress.model.loops import find_loops, in_running_order

STEPS, WIDTH = 7, 5


@pytest.fixture(scope="module")
def sequences():
    x = np.random.default_rng(0).normal(size=(32, STEPS, WIDTH)).astype(np.float32)
    x[:16, -3:] = 0
    return x


@pytest.fixture(scope="module")
def quantized(sequences):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((STEPS, WIDTH), name="x")
    masked = layers.Masking()(inputs)
    outputs = {
        "gru": layers.GRU(3, name="gru", return_sequences=True)(inputs),
        "masked": layers.SimpleRNN(4, recurrent_dropout=0.4, go_backwards=True, name="masked")(
            masked
        ),
    }
    model = keras.Model(inputs, outputs)
    return tfc.quantize(model, calibration_data=sequences, bias_correction=False)


def test_every_recurrent_layer_is_a_loop(quantized):
    graph = Graph.from_model(quantized)
    loops = find_loops(graph)
    assert len(loops) == 2
    assert all(loop.count >= STEPS - 3 for loop in loops)
    order = in_running_order(graph, loops)
    assert len(order) == len(graph.nodes) - sum(len(lo.nodes) for lo in loops) + len(loops)


def test_a_loop_computes_what_its_steps_compute(quantized, sequences):
    looped = quantized.predict(sequences, verbose=0)
    # Eagerly there are no loops.
    stepwise = quantized(sequences)
    for name, values in looped.items():
        np.testing.assert_array_equal(values, stepwise[name])


def test_a_training_step_of_a_loop(quantized, sequences):
    frozen = [la for la in quantized.layers if getattr(la, "frozen", None) is not None]
    variables = quantized.trainable_variables

    def gradients():
        # The first call of a step counts up the sequence of recurrent dropout.
        quantized.get_layer("masked_recurrent_dropout").sequence.assign(0)
        with tf.GradientTape() as tape:
            outputs = quantized(sequences, training=True)
            loss = sum(tf.reduce_sum(tf.square(y)) for y in outputs.values())
        return tape.gradient(loss, [v.value for v in variables])

    traced = tf.function(gradients, autograph=False)
    for layer in frozen:
        layer.frozen.assign(1.0)
    for found, expected in zip(traced(), gradients(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for layer in frozen:
        layer.frozen.assign(0.0)
    # What the steps of a loop observe moves the range that they share.
    statistics = quantized.get_layer("gru_candidate_sum_quantizer").statistics
    before = statistics.numpy()
    quantized.get_layer("gru_input").bias.assign_add(np.full(9, 1.5))
    gradients()
    stepwise = statistics.numpy()
    statistics.assign(before)
    traced()
    assert statistics.numpy()[1] > before[1] + 0.2
    np.testing.assert_allclose(statistics.numpy(), stepwise, rtol=0.05)
