"""Which tensor is compared with which, and what is said where that is not clear."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.distillation import (
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    TeacherCache,
)

X = np.random.default_rng(0).random((8, 4), np.float32)
A, B = layers.Dense(3, name="a"), layers.Dense(3, name="b")


def net(outputs):
    inputs = keras.Input((4,))
    return keras.Model(inputs, outputs(A(inputs), B(inputs)))


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (lambda a, b: {"zeta": a, "alpha": b}, lambda a, b: [a, b]),
        (lambda a, b: {"p": a, "q": b}, lambda a, b: {"r": b, "z": a}),
        (lambda a, b: [a, b], lambda a, b: [[a], b]),
    ],
)
def test_structures_that_differ_are_refused(teacher, student):
    with pytest.raises(ValueError, match=r"same structure, with the same keys\. Received.*Name"):
        Distiller(net(teacher), net(student), FeatureDistillation())


def test_structures_that_agree(make_net):
    teacher, student = net(lambda a, b: {"p": a, "q": b}), net(lambda a, b: {"q": b, "p": a})
    distiller = Distiller(teacher, student, FeatureDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd", run_eagerly=True)
    assert distiller.evaluate(X, verbose=0, return_dict=True)["loss"] == 0.0
    Distiller(net(lambda a, b: (a, b)), net(lambda a, b: [a, b]), FeatureDistillation())
    Distiller(net(lambda a, b: [a]), net(lambda a, b: {"only": a}), FeatureDistillation())


def test_a_loss_that_would_change_under_the_first_distiller(make_net):
    loss = LogitsDistillation(4.0)
    first = make_net(4, "p", head_activation="softmax")
    Distiller(first, make_net(4, "s"), loss)
    with pytest.raises(ValueError, match="a loss of its own for each Distiller"):
        Distiller(make_net(4, "t"), make_net(4, "s2"), loss)
    Distiller(first, make_net(4, "s3"), loss)


def test_tensors_of_what_has_none(make_net, images):
    teacher = make_net(4, "t")
    pool = teacher.get_layer("pool").output
    cache = TeacherCache.compute(teacher, images[0], layers=["pool"])
    for other in (cache, lambda x: x):
        with pytest.raises(ValueError, match=r"Received: a KerasTensor, for a .*layer's name"):
            Distiller(other, make_net(4, "s"), FeatureDistillation(pool, "pool"))


def test_callables_of_numpy_code(make_net, images):
    teacher = make_net(4, "t")
    loss = LogitsDistillation(teacher_from_logits=True)
    for function in (lambda x: np.asarray(x).sum(), lambda x: teacher.predict(x, verbose=0)):
        with pytest.raises(ValueError, match=r"tf\.numpy_function.*tf\.ensure_shape"):
            Distiller(function, make_net(4, "s"), loss)

    def wrapped(x):
        return tf.numpy_function(lambda v: v.reshape(-1, 64)[:, :10], [x], tf.float32)

    with pytest.raises(ValueError, match=r"a known number of axes.*tf\.ensure_shape"):
        Distiller(wrapped, make_net(4, "s"), loss)
    shaped = Distiller(lambda x: tf.ensure_shape(wrapped(x), (None, 10)), make_net(4, "s"), loss)
    shaped.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    shaped.train_on_batch(*images)
