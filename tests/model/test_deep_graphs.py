"""Functional models of graphs deeper than the recursion limit."""

import sys

import keras
import pytest
from keras import layers, ops

from tfcompress.model.deep_graphs import deep_graph
from tfcompress.model.graph import Graph


@pytest.fixture(scope="module")
def chain():
    x = y = keras.Input((2,))
    y = layers.Dense(3)(y)
    for _ in range(sys.getrecursionlimit() + 50):
        y = ops.negative(y)
    return x, y


def test_a_model_of_a_deep_graph(chain):
    limit = sys.getrecursionlimit()
    with pytest.raises(RecursionError):
        keras.Model(*chain)
    with deep_graph(chain[1]):
        model = keras.Model(*chain)
    assert sys.getrecursionlimit() == limit
    graph = Graph.from_model(model)
    copy = graph.to_model()
    assert len(Graph.from_model(copy).nodes) == len(graph.nodes)
    assert sys.getrecursionlimit() == limit
