import threading

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.model.calls import record_calls, watch_calls

X = np.ones((2, 3), np.float32)


@pytest.fixture
def layer():
    layer = layers.Dense(3)
    layer(X)
    return layer


def test_arguments_and_outputs_are_told(layer):
    seen = []
    with watch_calls([layer], lambda *call: seen.append(call)):
        outputs = layer(X, training=True)
    ((operation, args, _, received),) = seen
    assert operation is layer
    np.testing.assert_array_equal(args[0], X)
    assert received is outputs


def test_nothing_is_left_behind(layer):
    with pytest.raises(RuntimeError, match="stop"), record_calls([layer, layer]):
        raise RuntimeError("stop")
    assert "call" not in vars(layer)
    # What stood there before comes back.
    own = layer.__dict__["call"] = lambda inputs: inputs + 1
    with record_calls([layer]) as calls:
        layer(X)
    assert len(calls[id(layer)]) == 1
    assert vars(layer)["call"] is own


def test_watching_nests(layer):
    with record_calls([layer]) as outer:
        layer(X)
        with record_calls([layer]) as inner:
            layer(X)
        layer(X)
    assert len(outer[id(layer)]) == 3
    assert len(inner[id(layer)]) == 1
    assert "call" not in vars(layer)


def test_other_threads_are_not_told(layer):
    with record_calls([layer]) as calls:
        thread = threading.Thread(target=layer, args=(X,))
        thread.start()
        thread.join()
        assert calls[id(layer)] == []


def test_operations_of_a_graph_are_watched_too():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.ops.add(inputs, 1.0))
    operation = model.operations[-1]
    with record_calls([operation]) as calls:
        model(X)
    assert len(calls[id(operation)]) == 1
