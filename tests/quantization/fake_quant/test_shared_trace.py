"""Functions that all layers share: one trace, one node a call, and no update where none belongs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.operators.batch_norm import QuantizedBatchNormalization

MAKERS = {
    "quantizer": FakeQuantize,
    "batch norm": QuantizedBatchNormalization,
}


def batch():
    return tf.constant(np.random.default_rng(0).normal(1, 2, (4, 3, 3, 5)).astype(np.float32))


def trained_graph(made):
    """The graph of a training step through the layers and back."""

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for layer in made:
                y = layer(y, training=True)
            total = tf.reduce_sum(y * y)
        return tape.gradient(total, x)

    return step.get_concrete_function(batch()).graph


@pytest.mark.parametrize("kind", MAKERS)
def test_a_layer_adds_few_nodes_to_a_training_step_and_no_trace(kind):
    made = [MAKERS[kind]() for _ in range(5)]
    for layer in made:
        layer.build((None, 3, 3, 5))
    trained_graph(made[:1])
    two, five = trained_graph(made[:2]), trained_graph(made)
    nodes = (len(five.get_operations()) - len(two.get_operations())) / 3
    # The call, its gradient, the variables that it is handed, and what surrounds them. In place a
    # quantizer takes some 60 and a batch norm some 50.
    assert nodes <= 14
    functions = [len(graph.as_graph_def().library.function) for graph in (two, five)]
    assert functions[0] == functions[1]


@pytest.mark.parametrize("kind", MAKERS)
def test_in_a_stateless_scope_a_training_step_only_records_what_it_would_assign(kind):
    one, other = MAKERS[kind](), MAKERS[kind]()
    for layer in (one, other):
        layer.build((None, 3, 3, 5))
    before = [v.numpy() for v in other.variables]
    outputs = one(batch(), training=True)
    with keras.StatelessScope() as scope:
        expected = other(batch(), training=True)
    # Sums of a batch are added up in an order that follows from where it lies in memory.
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    for old, variable, moved in zip(before, other.variables, one.variables, strict=True):
        np.testing.assert_array_equal(variable, old)
        value = scope.get_current_value(variable)
        np.testing.assert_allclose(old if value is None else value, moved, rtol=1e-5, atol=1e-6)


def test_two_calls_of_one_quantizer_move_its_range_twice():
    quantizer = FakeQuantize()
    quantizer.build((None, 5))

    @tf.function(autograph=False)
    def step(x):
        return quantizer(x, training=True), quantizer(3 * x, training=True)

    step(tf.constant([[-1.0, 0.5, 0.25, 0.0, 2.0]]))
    apart = FakeQuantize()
    apart.build((None, 5))
    for factor in (1, 3):
        apart(factor * tf.constant([[-1.0, 0.5, 0.25, 0.0, 2.0]]), training=True)
    for variable, expected in zip(quantizer.variables, apart.variables, strict=True):
        np.testing.assert_array_equal(variable, expected)


def test_a_model_under_a_strategy_trains_as_without_one():
    def trained():
        keras.utils.set_random_seed(0)
        stack = [keras.Input((3, 3, 5)), FakeQuantize(), QuantizedBatchNormalization()]
        model = keras.Sequential([*stack, layers.GlobalAveragePooling2D(), layers.Dense(2)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(batch(), np.ones((4, 2), np.float32), batch_size=2, verbose=0, shuffle=False)
        return [v.numpy() for v in model.variables]

    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        distributed = trained()
    for value, expected in zip(distributed, trained(), strict=True):
        np.testing.assert_array_equal(value, expected)
