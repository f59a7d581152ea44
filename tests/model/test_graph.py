"""Reading, editing and rebuilding the graph of calls of a functional model."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.model.graph import Graph, check_functional, input_structure
from tfcompress.model.rewrite import rebuild, rename_duplicates


def sequential():
    return keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(3, 3), layers.BatchNormalization(), layers.Flatten()]
    )


def branches():
    inputs = keras.Input((6, 6, 2))
    a = layers.Conv2D(3, 3, padding="same")(inputs)
    b = layers.Conv2D(3, 1)(inputs)
    return keras.Model(inputs, layers.Add()([a, layers.ReLU()(b)]))


def shared_layer():
    inputs = keras.Input((6, 6, 2))
    conv = layers.Conv2D(2, 3, padding="same")
    return keras.Model(inputs, layers.Concatenate()([conv(inputs), conv(conv(inputs))]))


def nested_twice():
    inner = sequential()
    inputs = keras.Input((6, 6, 2))
    a, b = inner(inputs), inner(layers.Rescaling(2.0)(inputs))
    return keras.Model(inputs, layers.Subtract()([a, b]))


def nested_in_nested():
    deep = keras.Sequential([keras.Input((6, 6, 2)), branches(), layers.GlobalMaxPooling2D()])
    inputs = keras.Input((6, 6, 2))
    return keras.Model(inputs, layers.Dense(2)(deep(inputs)))


def nested_with_dict():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    inner = keras.Model({"a": a, "b": b}, {"sum": a + b, "product": a * b}, name="inner")
    x = keras.Input((6, 6, 2))
    flat = layers.Flatten()(x)
    result = inner({"a": layers.Dense(4)(flat), "b": layers.Dense(4)(flat)})
    return keras.Model(x, [result["product"], result["sum"]])


def operations():
    inputs = keras.Input((6, 6, 2))
    left, right = ops.split(inputs, 2, axis=-1)
    x = ops.concatenate([left * 2.0, 1.0 - right, inputs[:, :, :, 1:]], axis=-1)
    return keras.Model(inputs, ops.mean(ops.relu(x), axis=(1, 2)) / 3.0)


def called_by_keyword():
    inputs = keras.Input((6, 6, 2))
    x = layers.Flatten()(inputs=sequential()(inputs=inputs))
    return keras.Model(inputs, layers.Dense(2)(inputs=x))


def dict_outputs():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(2, 3)(inputs)
    return keras.Model(inputs, {"b": layers.Flatten()(x), "a": layers.GlobalMaxPooling2D()(x)})


def attention():
    inputs = keras.Input((6, 6, 2))
    x = layers.Reshape((36, 2))(inputs)
    return keras.Model(inputs, layers.MultiHeadAttention(2, 2)(query=x, value=x))


MODELS = [
    sequential,
    branches,
    shared_layer,
    nested_twice,
    nested_in_nested,
    nested_with_dict,
    operations,
    called_by_keyword,
    dict_outputs,
    attention,
]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_rebuilt_model_computes_the_same_and_shares_nothing(make):
    model = make()
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype(np.float32)
    expected = model(x)
    before = [w.copy() for w in model.get_weights()]
    copy = rebuild(Graph.from_model(model))
    for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(copy(x)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(copy.weights) == len(model.weights)
    for variable in copy.weights:
        variable.assign(variable + 1.0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_structures_of_inputs_and_outputs_are_kept():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    as_dict = keras.Model({"a": a, "b": b}, {"sum": a + b, "parts": [a * 2.0, b * 2.0]})
    as_list = keras.Model([b, a], [b - a, b])
    x, y = np.ones((2, 3), np.float32), np.full((2, 3), 5.0, np.float32)
    copy = rebuild(Graph.from_model(as_dict))
    result = copy({"a": x, "b": y})
    assert set(result) == {"sum", "parts"}
    np.testing.assert_array_equal(result["parts"][1], y * 2)
    np.testing.assert_array_equal(rebuild(Graph.from_model(as_list))([y, x])[0], y - x)
    assert [t.name for t in copy.inputs] == ["a", "b"]
    assert set(input_structure(as_dict)) == {"a", "b"}


def test_a_shared_layer_stays_one_layer():
    graph = Graph.from_model(shared_layer())
    conv = graph.nodes[0].operation
    assert len(graph.calls(conv)) == 3
    copy = rebuild(graph)
    assert len([layer for layer in copy.layers if isinstance(layer, layers.Conv2D)]) == 1


def test_nested_calls_know_their_path_and_order():
    model = nested_in_nested()
    graph = Graph.from_model(model)
    outer = next(layer for layer in model.layers if isinstance(layer, keras.Sequential))
    add = next(node for node in graph.nodes if isinstance(node.operation, layers.Add))
    assert add.path == (outer.name, outer.layers[0].name)
    seen = set(graph.flat_inputs)
    for node in graph.nodes:
        assert set(node.inputs) <= seen
        seen.update(node.outputs)
    assert graph.nodes[-1].path == ()


def test_names_that_nested_models_have_in_common_get_a_prefix():
    def tower(name):
        return keras.Sequential(
            [keras.Input((6, 6, 2)), layers.Conv2D(2, 3, name="conv"), layers.ReLU(name="image")],
            name=name,
        )

    inputs = keras.Input((6, 6, 2), name="image")
    left, right = tower("left"), tower("right")
    model = keras.Model(inputs, layers.Add(name="left_conv")([left(inputs), right(inputs)]))
    graph = Graph.from_model(model)
    originals = rename_duplicates(graph)
    names = [op.name for op in graph.operations()]
    assert sorted(names) == sorted({*names})
    # `left_conv` was taken, and so was the input's name; the outermost ones keep theirs.
    assert {"conv", "right_conv", "left_conv", "left_image", "right_image"} == set(names)
    assert {op.name: name for op, name in originals.items()} == {
        "right_conv": "conv",
        "left_image": "image",
        "right_image": "image",
    }
    assert [layer.name for layer in left.layers] == ["conv", "image"]
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype(np.float32)
    np.testing.assert_array_equal(graph.to_model()(x), model(x))


def test_insert_remove_and_consumers():
    graph = Graph.from_model(branches())
    image = graph.flat_inputs[0]
    assert len(graph.consumers(image)) == 2
    assert graph.sole_consumer(image) is None
    add = graph.nodes[-1]
    assert graph.is_output(add.output)
    doubled = graph.insert_after(image, layers.Rescaling(2.0))
    assert graph.consumers(image) == [doubled.node]
    halved = graph.insert_after(add.output, layers.Rescaling(0.5))
    assert graph.is_output(halved)
    assert not graph.is_output(add.output)
    relu = next(node for node in graph.nodes if isinstance(node.operation, layers.ReLU))
    graph.remove(relu)
    kinds = [type(layer).__name__ for layer in graph.to_model().layers]
    assert kinds.count("Rescaling") == 2
    assert "ReLU" not in kinds


def test_insert_after_for_some_readers_alone():
    graph = Graph.from_model(branches())
    image = graph.flat_inputs[0]
    first = graph.consumers(image)[0]
    graph.insert_after(image, layers.Rescaling(2.0), only=[first])
    assert image not in first.inputs
    assert len(graph.consumers(image)) == 2


def test_who_reads_a_value_is_kept_through_every_edit():
    graph = Graph.from_model(branches())

    def scanned(value):
        return [n for n in graph.nodes if any(v is value for v in n.inputs)]

    def check():
        values = [*graph.flat_inputs, *(v for n in graph.nodes for v in n.outputs)]
        assert [graph.consumers(v) for v in values] == [scanned(v) for v in values]

    check()
    image, last = graph.flat_inputs[0], graph.nodes[-1]
    spec = image.spec
    new = graph.insert_before(last, layers.Rescaling(2.0), (image,), {}, [spec])
    assert graph.nodes.index(new) == graph.nodes.index(last) - 1
    check()
    for value in last.inputs:
        last.replace_input(value, new.output)
    check()
    new.args = (graph.nodes[0].output,)
    new.kwargs = {"training": image}
    check()
    graph.replace(last, [new.output])
    assert graph.is_output(new.output)
    assert last not in graph.consumers(new.output)
    check()
    assert {id(op): len(calls) for op, calls in graph.calls_by_operation().items()} == {
        id(op): len(graph.calls(op)) for op in graph.operations()
    }


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


class FunctionalWithCall(keras.Model):
    """Its graph is not what calling it computes."""

    def __init__(self):
        inputs = keras.Input((4,))
        super().__init__(inputs, layers.Dense(2)(inputs))

    def call(self, x, training=None):
        return 2.0 * super().call(x, training=training)


@pytest.mark.parametrize("cls", [Subclassed, FunctionalWithCall])
def test_a_subclassed_model_is_refused_with_the_way_out(cls):
    model = cls()
    model(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match=rf"model .* of type {cls.__name__}.*functional"):
        Graph.from_model(model)


def test_an_unbuilt_sequential_and_a_stranger_are_refused():
    with pytest.raises(ValueError, match=r"Sequential 'net' without an input.*keras\.Input"):
        Graph.from_model(keras.Sequential([layers.Dense(2)], name="net"))
    with pytest.raises(TypeError, match=r"Expected a Keras model\. Received: 3"):
        check_functional(3)
    with pytest.raises(TypeError, match="Expected a Keras model"):
        check_functional(layers.Dense(2))


def test_a_subclassed_model_inside_is_one_call():
    inner = Subclassed()
    inputs = keras.Input((4,))
    graph = Graph.from_model(keras.Model(inputs, inner(inputs)))
    assert [node.operation for node in graph.nodes] == [inner]


def test_a_layer_that_cannot_be_copied_is_named():
    class NoConfig(layers.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, x):
            return x * self.factor

    inputs = keras.Input((4,))
    model = keras.Model(inputs, NoConfig(2.0)(inputs))
    with pytest.raises(ValueError, match=r"(?s)type NoConfig, which raises.*Give the class a get_"):
        rebuild(Graph.from_model(model))
