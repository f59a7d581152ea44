"""Mistakes are named before training."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.distillation import (
    AttentionTransfer,
    DistillationSchedule,
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    RelationalDistance,
)


def net(classes=10, activation=None, size=8, name=None):
    inputs = keras.Input((size, size, 1))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(
        inputs, layers.Dense(classes, activation=activation, name="head")(x), name=name
    )


LOGITS = LogitsDistillation


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Distiller(net(9), net(), LOGITS()), ValueError, "the same shape.*Received.*9.*10"),
        (lambda: Distiller(net(size=16), net(), LOGITS()), ValueError, "runs on the student's"),
        (lambda: Distiller(net(), net(), FeatureDistillation("cnv", "conv")), ValueError, "conv"),
        (lambda: Distiller(net(), net(), FeatureDistillation("conv", "pol")), ValueError, "pool"),
        (lambda: Distiller(net(), net(), [LOGITS()], loss_weights=[1, 2]), ValueError, "2 weights"),
        (lambda: Distiller(net(), net(), []), ValueError, "at least one"),
        (lambda: Distiller(net(), net(), [LOGITS()], loss_weights=[-1]), ValueError, "at least 0"),
        (lambda: Distiller(net(), net(), [LOGITS()], loss_weights=["a"]), TypeError, "a number"),
        (
            lambda: Distiller(net(), net(), LOGITS(), student_loss_weight=-0.5),
            ValueError,
            "student_loss_weight` to be at least 0",
        ),
        (lambda: Distiller(net(), net(), "kl"), TypeError, "Expected distillation losses"),
        (lambda: Distiller(net(), layers.Dense(3), LOGITS()), TypeError, "`student` to be"),
        (lambda: Distiller(42, net(), LOGITS()), TypeError, "`teacher` to be"),
        (lambda: Distiller(net(), net(1), LOGITS()), ValueError, "the same shape"),
        (lambda: Distiller(net(1), net(1), LOGITS()), ValueError, "multi_label=True"),
        (
            lambda: Distiller(net(activation="sigmoid"), net(), LOGITS()),
            ValueError,
            "to end in softmax.*Received: sigmoid.*multi_label=True",
        ),
        (
            lambda: Distiller(net(activation="softmax"), net(), LOGITS(multi_label=True)),
            ValueError,
            "to end in sigmoid",
        ),
        (
            lambda: Distiller(lambda x: keras.ops.zeros((8, 10)), net(), LOGITS()),
            ValueError,
            "teacher_from_logits=True` for logits",
        ),
        (
            lambda: Distiller(net(), net(), FeatureDistillation("conv", "pool")),
            ValueError,
            "shapes",
        ),
        (
            lambda: Distiller(net(9), net(), FeatureDistillation(adapter=None)),
            ValueError,
            "pass a layer that does it",
        ),
        (lambda: Distiller(net(), net(), AttentionTransfer("pool", "pool")), ValueError, "maps"),
    ],
)
def test_error_at_construction(make, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        make()


def test_number_of_outputs():
    inputs = keras.Input((8, 8, 1))
    flat = layers.Flatten()(inputs)
    two = keras.Model(inputs, [layers.Dense(10)(flat), layers.Dense(10)(flat)])
    with pytest.raises(ValueError, match="as many tensors from the teacher"):
        Distiller(two, net(), LOGITS())
    Distiller(two, net(), LOGITS(teacher_layer=1))
    Distiller(two, net(), RelationalDistance(teacher_layer=0, student_layer="pool"))


def test_schedule_errors():
    with pytest.raises(TypeError, match="a function of the step"):
        DistillationSchedule(temperature=4.0)
    x, y = np.zeros((4, 8, 8, 1), "float32"), np.zeros(4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain = net()
    plain.compile("sgd", loss)
    with pytest.raises(ValueError, match="in the `fit` of a Distiller"):
        plain.fit(x, y, callbacks=[DistillationSchedule()], verbose=0)
    distiller = Distiller(net(), net(), FeatureDistillation())
    distiller.compile("sgd", loss)
    for schedule, message in (
        (DistillationSchedule(temperature=lambda step: 1.0), "a loss with a temperature"),
        (DistillationSchedule(loss_weights=[None, None]), "for each of 1 losses"),
    ):
        with pytest.raises(ValueError, match=message):
            distiller.fit(x, y, callbacks=[schedule], verbose=0)
