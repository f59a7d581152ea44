"""Private attributes of Keras: each fails here first, and by name, when a release moves it."""

import pathlib
import re

import keras
import numpy as np
from keras import layers

import tfcompress
from tfcompress.model import keras_private


def model():
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="a"), layers.ReLU(), layers.Dense(2, name="b")]
    )


def test_calls_of_a_functional_model():
    sequential = model()
    inner = keras_private.functional_part(sequential)
    assert keras_private.has_calls(inner)
    assert not keras_private.has_calls(layers.Dense(1))
    nodes = [
        node
        for d in sorted(inner._nodes_by_depth, reverse=True)
        for node in inner._nodes_by_depth[d]
    ]
    assert [node.is_input for node in nodes] == [True, False, False, False]
    calls = list(keras_private.calls(inner))
    assert [operation for operation, *_ in calls] == sequential.layers
    assert all(isinstance(args, tuple) and isinstance(kwargs, dict) for _, args, kwargs, _ in calls)
    assert calls[-1][3][0] is inner.outputs[0]
    assert inner.output_names == ["b"]


def test_what_a_model_was_compiled_with():
    def own(y_true, y_pred):
        return y_true - y_pred

    compiled = model()
    assert keras_private.compile_arguments(compiled) == {}
    compiled.compile("sgd", "mse", loss_weights=[1.0], metrics=[own], weighted_metrics=["mae"])
    found = keras_private.compile_arguments(compiled)
    assert (found["loss"], found["loss_weights"]) == ("mse", [1.0])
    assert (found["metrics"], found["weighted_metrics"]) == ([own], ["mae"])


def test_what_a_metric_says_of_itself():
    metrics = keras.metrics
    assert keras_private.metric_direction(metrics.KLDivergence()) == "min"
    assert keras_private.metric_direction(metrics.R2Score()) == "max"
    assert keras_private.metric_direction(metrics.Mean()) is None
    y, p = np.array([[0.0, 1.0]]), np.array([[0.5, 0.7]])
    function = keras_private.mean_function(metrics.BinaryAccuracy(threshold=0.8))
    np.testing.assert_array_equal(function(y, p), [[1, 0]])
    assert keras_private.mean_function(metrics.RootMeanSquaredError()) is None

    class Own(metrics.MeanAbsoluteError):
        def result(self):
            return 2 * super().result()

    assert keras_private.mean_function(Own()) is None


def test_the_call_that_gave_a_tensor():
    sequential = model()
    assert keras_private.call_of(sequential.inputs[0]) is None
    operation, args, kwargs = keras_private.call_of(sequential.outputs[0])
    assert (operation, kwargs) == (sequential.layers[-1], {})
    assert args[0] is sequential.layers[1].output


def test_tensors_of_calls():
    x = keras.Input((4, 2))
    recurrent = layers.LSTM(3, return_state=True)
    outputs = recurrent(x)
    assert keras_private.outputs_of_call(outputs[1])[1] is outputs[1]
    assert len(keras_private.outputs_of_call(outputs[0])) == 3
    assert keras_private.tensors_read(recurrent) == [x]


def test_layers_inside_a_layer():
    bidirectional = layers.Bidirectional(layers.LSTM(2))
    bidirectional.build((None, 3, 4))
    forward = bidirectional.forward_layer
    assert forward in keras_private.direct_sublayers(bidirectional)
    assert forward.cell not in keras_private.direct_sublayers(bidirectional)
    found = keras_private.all_layers(bidirectional)
    assert found[0] is bidirectional
    assert forward.cell in found


def test_padding_masks():
    tensor = layers.Embedding(5, 2, mask_zero=True)(np.array([[1, 0]]))
    np.testing.assert_array_equal(keras_private.padding_mask(tensor), [[True, False]])
    keras_private.set_padding_mask(tensor, None)
    assert keras_private.padding_mask(tensor) is None


def test_no_other_file_reads_private_attributes_of_keras():
    root = pathlib.Path(tfcompress.__file__).parent
    names = (
        r"\._(flatten_layers|functional|nodes_by_depth|keras_history|inbound_nodes|keras_mask"
        r"|inputs_struct|layers)\b"
    )
    files = [path for path in root.rglob("*.py") if re.search(names, path.read_text("utf-8"))]
    assert [path.name for path in files] == ["keras_private.py"]


def test_calls_can_be_forgotten():
    dense = layers.Dense(2)
    first = dense(keras.Input((3,)))
    with keras_private.kept_calls([dense]):
        dense(layers.Dense(3)(keras.Input((3,))))
        layers.ReLU()(first)
        assert len(dense._inbound_nodes) == 2
    assert len(dense._inbound_nodes) == 1
    assert not dense._outbound_nodes


def test_fit_builds_a_model_by_the_method_that_is_replaced():
    sequential = model()
    sequential.compile("sgd", "mse")
    assert callable(keras.Model._maybe_symbolic_build)
    keras_private.build_without_batch(sequential)
    sequential.fit(np.zeros((4, 4)), np.zeros((4, 2)), verbose=0)
    assert sequential.optimizer.built
    assert sequential._maybe_symbolic_build.__module__ == keras_private.__name__


def test_optimizers_sum_gradients_of_replicas_by_the_method_that_is_replaced():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0))
    keras_private.leave_out_reduction(optimizer)
    inner = optimizer.inner_optimizer
    assert inner._all_reduce_sum_gradients is list
    summed = []
    inner._all_reduce_sum_gradients = lambda pairs: summed.append(1) or pairs
    optimizer.apply([np.ones(2)], [keras.Variable(np.zeros(2))])
    assert summed == [1]


def test_variables_are_added_to_a_layer_that_is_built():
    layer = layers.Dense(2)
    layer.build((None, 3))
    with keras_private.adding_variables(layer):
        added = layer.add_weight(name="held", shape=(3, 2), trainable=False)
    assert any(variable is added for variable in layer.weights)
    with np.testing.assert_raises(ValueError):
        layer.add_weight(name="late", shape=())


def test_the_epoch_that_fit_begins_with():
    sequential = model()
    sequential.compile("sgd", "mse")
    keras_private.set_initial_epoch(sequential, 2)
    x, y = np.ones((2, 4)), np.ones((2, 2))
    assert sequential.fit(x, y, epochs=3, verbose=0).epoch == [2]
    keras_private.set_initial_epoch(sequential, None)
    assert sequential.fit(x, y, verbose=0).epoch == [0]


def test_the_cell_of_convolutional_lstms():
    assert type(layers.ConvLSTM2D(1, 1).cell) is keras_private.conv_lstm_cell()
