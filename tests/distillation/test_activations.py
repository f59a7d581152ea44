"""What a model's last activation is, and that what cannot be told is said to be unknown."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.distillation import Distiller, LogitsDistillation
from tfcompress.distillation.activations import output_activations


def dense(activation=None):
    return layers.Dense(3, activation=activation)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (lambda x: dense()(x), "none"),
        (lambda x: dense("softmax")(x), "softmax"),
        (lambda x: dense("sigmoid")(x), "sigmoid"),
        (lambda x: dense("log_softmax")(x), "none"),
        (lambda x: dense(tf.nn.softmax)(x), "softmax"),
        (lambda x: dense(keras.ops.softmax)(x), "softmax"),
        (lambda x: dense(layers.Softmax())(x), "softmax"),
        (lambda x: dense(tf.nn.sigmoid)(x), "sigmoid"),
        (lambda x: dense(lambda z: keras.ops.softmax(z))(x), None),
        (lambda x: dense("sparsemax")(x), None),
        (lambda x: dense("hard_sigmoid")(x), None),
        (lambda x: layers.Softmax()(dense()(x)), "softmax"),
        (lambda x: layers.Activation("softmax")(dense()(x)), "softmax"),
        (lambda x: keras.ops.softmax(dense()(x)), "softmax"),
        (lambda x: keras.ops.softmax(dense()(x), axis=0), None),
        (lambda x: layers.Dropout(0.1)(dense("softmax")(x)), "softmax"),
        (lambda x: layers.Identity()(dense()(x)), "none"),
        (lambda x: layers.Reshape((1, 3))(dense()(x)), "none"),
        (lambda x: layers.Reshape((1, 3))(dense("softmax")(x)), "softmax"),
        (lambda x: layers.Reshape((3, 1))(dense()(x)), None),
        (lambda x: layers.Average()([dense("softmax")(x), dense("softmax")(x)]), "softmax"),
        (lambda x: layers.Average()([dense("softmax")(x), dense()(x)]), None),
        (lambda x: layers.Add()([dense()(x), dense("relu")(x)]), "none"),
        (lambda x: layers.Add()([dense("softmax")(x), dense("softmax")(x)]), None),
        (lambda x: keras.ops.log(dense("softmax")(x)), None),
        (lambda x: keras.ops.exp(dense()(x)), None),
    ],
)
def test_last_activation(head, expected):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, head(inputs))
    assert output_activations(model) == [expected]
    outer = keras.Sequential([keras.Input((6,)), model])
    assert output_activations(outer) == [expected]


@pytest.mark.parametrize(
    ("activation", "pooling", "expected"),
    [
        ("softmax", layers.GlobalAveragePooling2D, "softmax"),
        ("softmax", layers.GlobalMaxPooling2D, None),
        (None, layers.GlobalMaxPooling2D, "none"),
        ("relu", layers.GlobalAveragePooling2D, "none"),
    ],
)
def test_pooling_of_a_map(activation, pooling, expected):
    inputs = keras.Input((4, 4, 1))
    outputs = pooling()(layers.Conv2D(3, 1, activation=activation)(inputs))
    assert output_activations(keras.Model(inputs, outputs)) == [expected]


def test_an_unknown_activation_is_asked_for(make_net):
    teacher = make_net(4, "t", head_activation=lambda z: keras.ops.softmax(z))
    with pytest.raises(ValueError, match="teacher_from_logits=True` for logits"):
        Distiller(teacher, make_net(4, "s"), LogitsDistillation())
    Distiller(teacher, make_net(4, "s"), LogitsDistillation(teacher_from_logits=False))
