"""The oracle: a model without some channels gives what the model gives with them held at zero."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfcompress.pruning.structure.removal import remove


def randomize(model, seed=0):
    """Random weights of every kind, batch-norm statistics too, with activations of size one."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        shape, name = tuple(variable.shape), variable.name
        if name in ("seed_generator_state", "count") or not keras.backend.is_float_dtype(
            variable.dtype
        ):
            continue
        if "variance" in name or name in ("gamma", "scale"):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            fan_in = np.prod(shape[:-1]) if shape[-1] > 1 or len(shape) < 3 else np.prod(shape[:-2])
            value = rng.normal(size=shape) / np.sqrt(fan_in)
        else:
            value = rng.normal(size=shape) * 0.2
        variable.assign(value)


def zeroed(dependencies, units, inputs):
    """The model's outputs with the activations of `units` held at zero after every call."""
    tracer, kept = dependencies.tracer, dependencies.removed(units)
    graph = tracer.graph

    def mask(value, result):
        for axis, labels in enumerate(tracer.of(value)):
            if labels is not None:
                shape = [1] * len(value.shape)
                shape[axis] = len(labels)
                result = result * tf.constant(kept.of(labels).reshape(shape), result.dtype)
        return result

    def call(node, args, kwargs):
        results = keras.tree.flatten(node.operation(*args, **kwargs))
        return [mask(v, r) for v, r in zip(node.outputs, results, strict=True)]

    run = tf.function(
        lambda xs: graph.run(dict(zip(graph.flat_inputs, xs, strict=True)), call), autograph=False
    )
    return [np.asarray(y) for y in keras.tree.flatten(run([tf.constant(x) for x in inputs]))]


def sample(model, batch=2, seed=1):
    rng = np.random.default_rng(seed)
    arrays = []
    for tensor in model.inputs:
        shape = (batch, *((s or 9) for s in tensor.shape[1:]))
        if keras.backend.is_float_dtype(tensor.dtype):
            arrays.append(rng.normal(size=shape).astype("float32"))
        else:
            arrays.append(rng.integers(0, 5, shape).astype("int32"))
    return arrays


def outputs(model, inputs):
    results = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [np.asarray(y) for y in keras.tree.flatten(results)]


def choose(dependencies, fraction=0.5, seed=2):
    """Some units of every group, never all."""
    rng = np.random.default_rng(seed)
    chosen = []
    for group in dependencies.groups:
        count = min(max(1, round(len(group) * fraction)), len(group) - 1)
        chosen.append(rng.choice(group.units, count, replace=False))
    return np.concatenate(chosen)


def relative_error(expected, received):
    return max(
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12))
        for a, b in zip(expected, received, strict=True)
    )


def check(dependencies, units, inputs=None, tolerance=1e-5):
    """Removes `units`, compares with the oracle, and returns the smaller model."""
    model = dependencies.model
    inputs = sample(model) if inputs is None else inputs
    before = [np.array(v) for v in model.variables]
    smaller = remove(dependencies, units)
    expected = zeroed(dependencies, units, inputs)
    error = relative_error(expected, outputs(smaller, inputs))
    assert error <= tolerance, error
    # What was zeroed matters, and the original is as it was.
    assert relative_error(outputs(model, inputs), expected) > 1e-3
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, np.array(variable))
    assert smaller.count_params() < model.count_params()
    return smaller


def plain(padding="valid", use_bias=True, activation="relu", norm=True):
    """conv → norm → activation → conv (read with `padding`) → global pooling → dense."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="first")(image)
    x = layers.BatchNormalization(name="norm")(x) if norm else x
    x = layers.Activation(activation)(x)
    x = layers.Conv2D(6, 3, padding=padding, use_bias=use_bias, name="second")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    model = keras.Model(image, layers.Dense(3, name="logits")(x))
    randomize(model)
    return model
