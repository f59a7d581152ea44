"""Whose weights a distillation loss gets: of samples, classes, outputs, pixels, and padding."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tfcompress import quantize
from tfcompress.distillation import (
    AttentionTransfer,
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 8)).astype("float32")
Y = {"kind": RNG.integers(0, 4, 32), "value": RNG.normal(size=(32, 1)).astype("float32")}
ONE, ZERO = np.ones(32, "float32"), np.zeros(32, "float32")


def two_heads(width, name, as_list=False):
    inputs = keras.Input((8,), name="x")
    hidden = layers.Dense(width, activation="relu", name="hidden")(inputs)
    kind, value = layers.Dense(4, name="kind")(hidden), layers.Dense(1, name="value")(hidden)
    outputs = [kind, value] if as_list else {"kind": kind, "value": value}
    return keras.Model(inputs, outputs, name=name)


def terms(distiller, x, y, sample_weight=None):
    logs = distiller.evaluate(
        x, y, sample_weight=sample_weight, batch_size=len(x), verbose=0, return_dict=True
    )
    return [logs[metric.name] for metric in distiller._loss_trackers]


@pytest.fixture
def distiller(crossentropy):
    losses = [
        LogitsDistillation(teacher_layer="kind", student_layer="kind"),
        FeatureDistillation("value", "value"),
        FeatureDistillation("hidden", "hidden"),
        FeatureDistillation(name="both"),
    ]
    distiller = Distiller(two_heads(16, "t"), two_heads(4, "s"), losses)
    distiller.compile("sgd", {"kind": crossentropy, "value": "mse"}, run_eagerly=True)
    return distiller


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"kind": ONE, "value": ZERO}, (1.0, 0.0, 0.5)),
        ({"kind": ZERO, "value": None}, (0.0, 1.0, 0.5)),
        ({"kind": 2 * ONE, "value": 4 * ONE}, (2.0, 4.0, 3.0)),
    ],
)
def test_a_loss_on_one_output_has_that_outputs_weights(distiller, weights, shares):
    kind, value, hidden, both = terms(distiller, X, Y)
    received = terms(distiller, X, Y, weights)
    assert received[:3] == pytest.approx([kind * shares[0], value * shares[1], hidden * shares[2]])
    of_kind = both - value
    assert received[3] == pytest.approx(of_kind * shares[0] + value * shares[1], rel=1e-5)
    logs = distiller.fit(X, Y, sample_weight=weights, verbose=0).history
    assert np.isfinite(logs["loss"]).all()


@pytest.mark.parametrize("key", [1, "value"])
@pytest.mark.parametrize("quantized", [False, True])
def test_an_output_of_a_list_by_index_or_layer(crossentropy, key, quantized):
    student = two_heads(4, "s", as_list=True)
    if quantized:
        student = quantize(student, "int8", calibration_data=X)
    loss = FeatureDistillation(teacher_layer=1, student_layer=key)
    distiller = Distiller(two_heads(8, "t", as_list=True), student, loss)
    distiller.compile("sgd", [crossentropy, "mse"], run_eagerly=True)
    y = [Y["kind"], Y["value"]]
    assert terms(distiller, X, y, [ONE, ZERO]) == [0.0]
    plain = terms(distiller, X, y)
    assert terms(distiller, X, y, [ZERO, ONE]) == pytest.approx(plain)


def segmentation(width, stride, name):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(width, 3, stride, padding="same", activation="relu", name="map")(inputs)
    x = layers.UpSampling2D(stride)(x) if stride > 1 else x
    return keras.Model(inputs, layers.Conv2D(3, 1, name="mask")(x), name=name)


@pytest.mark.parametrize("stride", [1, 2])
def test_weights_per_pixel(crossentropy, stride):
    x = RNG.random((16, 8, 8, 1), np.float32)
    y = RNG.integers(0, 3, (16, 8, 8))
    weight = np.zeros((16, 8, 8), "float32")
    weight[:, :4] = 1.0
    teacher, student = segmentation(8, stride, "t"), segmentation(8, stride, "s")
    losses = [
        LogitsDistillation(2.0),
        FeatureDistillation("map", "map"),
        AttentionTransfer("map", "map"),
    ]
    distiller = Distiller(teacher, student, losses)
    distiller.compile("sgd", crossentropy)
    logits, hint, attention = terms(distiller, x, y, weight)
    t, s = (ops.log_softmax(m.predict(x, verbose=0) / 2) for m in (teacher, student))
    kl = 4 * np.sum(np.exp(t) * (np.asarray(t) - np.asarray(s)), -1)
    assert logits == pytest.approx((kl * weight).mean(), rel=1e-3)
    t, s = (np.asarray(m.get_layer("map")(x)) for m in (teacher, student))
    small = weight[:, ::stride, ::stride]
    assert hint == pytest.approx((((t - s) ** 2).mean(-1) * small).mean(), rel=1e-3)
    assert attention == pytest.approx(terms(distiller, x, y)[2] / 2, rel=1e-3)


def test_pixel_weights_of_the_named_output(crossentropy):
    def net(width, name):
        inputs = keras.Input((8, 8, 1))
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(inputs)
        mask = layers.Conv2D(3, 1, name="mask")(x)
        pooled = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, {"mask": mask, "cls": layers.Dense(4, name="cls")(pooled)})

    x = RNG.random((8, 8, 8, 1), np.float32)
    y = {"mask": RNG.integers(0, 3, (8, 8, 8)), "cls": RNG.integers(0, 4, 8)}
    weight = (RNG.random((8, 8, 8)) > 0.7).astype("float32")
    teacher, student = net(8, "t"), net(4, "s")
    loss = LogitsDistillation(teacher_layer="mask", student_layer="mask")
    distiller = Distiller(teacher, student, loss)
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    (received,) = terms(distiller, x, y, {"mask": weight, "cls": np.ones(8, "float32")})
    t, s = (np.asarray(ops.log_softmax(m(x)["mask"])) for m in (teacher, student))
    assert received == pytest.approx((np.sum(np.exp(t) * (t - s), -1) * weight).mean(), rel=1e-4)


def test_outputs_without_a_feature_axis():
    def net(width):
        inputs = keras.Input((8,))
        x = layers.Dense(1)(layers.Dense(width, activation="relu")(inputs))
        return keras.Model(inputs, layers.Reshape(())(x))

    teacher, student = net(8), net(4)
    losses = [
        FeatureDistillation(),
        LogitsDistillation(multi_label=True, teacher_from_logits=True, student_from_logits=True),
    ]
    distiller = Distiller(teacher, student, losses)
    distiller.compile("sgd", "mse", run_eagerly=True)
    weight = np.array([3] + [0] * 15, "float32")
    received = terms(distiller, X[:16], Y["value"][:16, 0], weight)
    t, s = (m.predict(X[:16], verbose=0) for m in (teacher, student))
    assert t.shape == (16,)
    assert received[0] == pytest.approx(((t - s) ** 2 * weight).mean(), rel=1e-4)
    first = losses[1].compute_loss(t[:1], s[:1])
    assert received[1] == pytest.approx(float(first) * 3 / 16, rel=1e-4)
    with pytest.raises(ValueError, match="at least two classes"):
        Distiller(teacher, student, LogitsDistillation(teacher_from_logits=True))


def test_padding_has_no_part(crossentropy):
    def net(width):
        inputs = keras.Input((6,), dtype="int32")
        x = layers.Embedding(20, width, mask_zero=True, embeddings_initializer="normal")(inputs)
        x = layers.Dense(width, activation="tanh", name="hidden")(x)
        return keras.Model(inputs, layers.Dense(5, kernel_initializer="normal")(x))

    x = RNG.integers(1, 20, (16, 6))
    x[:, 4:] = 0
    x[:8, 2:] = 0
    y = RNG.integers(0, 5, (16, 6))
    teacher, student = net(8), net(4)
    losses = [LogitsDistillation(), FeatureDistillation("hidden", "hidden")]
    distiller = Distiller(teacher, student, losses)
    distiller.compile("sgd", crossentropy)
    t, s = (np.asarray(ops.log_softmax(m(x))) for m in (teacher, student))
    kl, there = np.sum(np.exp(t) * (t - s), -1), x > 0
    weight = np.arange(16, dtype="float32")[:, None]
    assert terms(distiller, x, y)[0] == pytest.approx(kl[there].mean(), rel=1e-3)
    expected = (kl * weight)[there].mean()
    assert terms(distiller, x, y, weight)[0] == pytest.approx(expected, rel=1e-3)
    logs = distiller.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    student.compile("sgd", crossentropy)  # Keras' own loss still sees the mask.
    own = student.evaluate(x, y, batch_size=16, verbose=0)
    assert logs["student_loss"] == pytest.approx(own, rel=1e-4)


def test_sample_weight_and_class_weight_weigh_every_term(make_net, images, crossentropy):
    x, y = images
    teacher, student = make_net(8, "t"), make_net(4, "s")
    distiller = Distiller(teacher, student, [LogitsDistillation(), FeatureDistillation()])
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    weight = (y == 3).astype("float32")
    logs = distiller.evaluate(
        x, y, sample_weight=weight, batch_size=64, return_dict=True, verbose=0
    )
    # Keras divides by the number of samples, not by the sum of the weights.
    share = weight.mean()
    only = distiller.evaluate(x[y == 3], y[y == 3], batch_size=64, return_dict=True, verbose=0)
    for name in ("loss", "student_loss", "logits_distillation", "feature_distillation"):
        assert logs[name] == pytest.approx(share * only[name], rel=1e-4)
    before = student.get_weights()
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy, run_eagerly=True)
    distiller.fit(x, y, class_weight=dict.fromkeys(range(10), 0.0), verbose=0)
    trainable = len(student.trainable_variables)
    assert trainable
    moved = [not np.array_equal(a, b) for a, b in zip(before, student.get_weights(), strict=True)]
    assert sum(moved) == 2  # The two moving statistics of the batch norm.


def test_class_weights_by_number(make_net, images, crossentropy):
    x, y = images
    teacher, student = make_net(8, "t"), make_net(4, "s")
    class_weight = {label: 0.25 * label for label in range(10)}
    per_sample = 0.25 * y
    t, s = teacher(x), student(x, training=True)
    kl = keras.losses.KLDivergence(reduction=None)(tf.nn.softmax(t), tf.nn.softmax(s))
    own = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)(y, s)
    distiller = Distiller(teacher, student, LogitsDistillation())
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy)
    logs = distiller.fit(x, y, batch_size=64, class_weight=class_weight, verbose=0).history
    assert logs["logits_distillation"][0] == pytest.approx((kl * per_sample).numpy().mean(), 1e-3)
    assert logs["student_loss"][0] == pytest.approx((own * per_sample).numpy().mean(), rel=1e-4)
