"""Modes of training that must not change the result, and losses that are not numbers."""

import keras
import numpy as np
import pytest

from tfcompress.distillation import (
    AttentionTransfer,
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
    TeacherCache,
)


def test_several_steps_per_execution_are_several_steps(make_net, images, crossentropy):
    weights = []
    for steps in (1, 3):
        keras.utils.set_random_seed(5)
        losses = [LogitsDistillation(2.0), FeatureDistillation("pool", "pool")]
        distiller = Distiller(make_net(8, "t"), make_net(4, "s"), losses)
        distiller.compile("adam", crossentropy, steps_per_execution=steps)
        distiller.fit(*images, batch_size=16, shuffle=False, verbose=0)
        assert int(distiller.optimizer.iterations) == 4
        weights.append([v.numpy() for v in distiller.trainable_variables])
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_default_weights_are_one(make_net, images, crossentropy):
    teacher, student = make_net(8, "t"), make_net(4, "s")
    losses = []
    for options in ({}, {"student_loss_weight": 1.0, "loss_weights": [1.0]}):
        distiller = Distiller(teacher, student, LogitsDistillation(2.0), **options)
        distiller.compile("sgd", crossentropy, run_eagerly=True)
        logs = distiller.evaluate(*images, verbose=0, return_dict=True)
        total = logs["student_loss"] + logs["logits_distillation"]
        assert logs["loss"] == pytest.approx(total, rel=1e-6)
        losses.append(logs["loss"])
    assert losses[0] == losses[1]
    Distiller(teacher, student, LogitsDistillation(), loss_weights=np.array([0.5], "float32"))


def test_bfloat16_is_near_float32(make_net, images, crossentropy):
    histories = []
    for policy in ("float32", "mixed_bfloat16"):
        keras.mixed_precision.set_dtype_policy(policy)
        keras.utils.set_random_seed(5)
        try:
            teacher, student = make_net(8, "t"), make_net(4, "s")
        finally:
            keras.mixed_precision.set_dtype_policy("float32")
        losses = [
            LogitsDistillation(4.0),
            FeatureDistillation("relu", "relu"),
            AttentionTransfer("relu", "relu"),
        ]
        distiller = Distiller(teacher, student, losses)
        distiller.compile("adam", crossentropy)
        fit = distiller.fit(*images, batch_size=32, epochs=2, shuffle=False, verbose=0)
        histories.append(fit.history["loss"])
    assert np.isfinite(histories).all()
    np.testing.assert_allclose(histories[1], histories[0], rtol=0.02)


def test_a_cache_of_bfloat16(make_net, images, crossentropy, tmp_path):
    for policy in ("mixed_bfloat16", "bfloat16"):
        keras.mixed_precision.set_dtype_policy(policy)
        try:
            teacher = make_net(8, "t")
        finally:
            keras.mixed_precision.set_dtype_policy("float32")
        path = tmp_path / f"{policy}.npz"
        for _ in range(2):
            cache = TeacherCache.compute(teacher, images[0], path, layers=["pool"])
        assert cache.outputs.dtype == cache.features["pool"].dtype == "float32"
        expected = np.asarray(keras.ops.cast(teacher(images[0]), "float32"))
        np.testing.assert_allclose(cache.outputs, expected, rtol=0.02, atol=1e-2)
    distiller = Distiller(cache, make_net(4, "s"), LogitsDistillation())
    distiller.compile("sgd", crossentropy)
    distiller.fit(cache.pair(images[0]), images[1], verbose=0)


@pytest.mark.parametrize("jit", [False, True])
def test_labels_that_have_no_weight_do_no_harm(make_net, images, jit):
    def not_a_number(y, y_pred):
        return keras.ops.sum(y_pred, axis=-1) * float("nan")

    x, y = images
    distiller = Distiller(
        make_net(8, "t"), make_net(4, "s"), LogitsDistillation(), student_loss_weight=0.0
    )
    distiller.compile("sgd", not_a_number, jit_compile=jit)
    logs = distiller.fit(x, y, batch_size=32, verbose=0).history
    assert np.isnan(logs["student_loss"][0])
    assert logs["loss"] == logs["logits_distillation"]
    assert all(np.isfinite(v.numpy()).all() for v in distiller.trainable_variables)


def test_a_cache_and_plain_validation_data_without_labels_weight(make_net, images, crossentropy):
    x, y = images
    cache = TeacherCache.compute(make_net(8, "t"), x)
    distiller = Distiller(cache, make_net(4, "s"), LogitsDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd", crossentropy, metrics=["accuracy"])
    history = distiller.fit(cache.pair(x), y, validation_data=(x, y), verbose=0).history
    assert {"val_student_loss", "val_accuracy"} < set(history)
    assert "val_loss" not in history
    history = distiller.fit(cache.pair(x), y, validation_data=(cache.pair(x), y), verbose=0).history
    assert history["val_loss"] == history["val_logits_distillation"]


RNG = np.random.default_rng(2)
T, S = (RNG.normal(size=(6, 4, 4, 3)).astype("float32") for _ in range(2))


@pytest.mark.parametrize("scale", [1e-4, 1e-8, 1e8])
@pytest.mark.parametrize(
    "loss", [AttentionTransfer, SimilarityPreserving, RelationalDistance, RelationalAngle]
)
def test_losses_on_relations_have_no_scale(loss, scale):
    expected = float(loss().compute_loss(T, S))
    assert expected > 1e-3
    assert float(loss().compute_loss(scale * T, S)) == pytest.approx(expected, rel=1e-3)
    assert float(loss().compute_loss(T, scale * S)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss", [RelationalDistance, RelationalAngle])
def test_losses_on_relations_have_no_place(loss):
    expected = float(loss().compute_loss(T, S))
    assert float(loss().compute_loss(T + 1000, S)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_class_that_the_teacher_rules_out(multi_label):
    import tensorflow as tf

    loss = LogitsDistillation(
        2.0, multi_label=multi_label, teacher_from_logits=True, student_from_logits=True
    )
    teacher = np.array([[1.0, 2.0, -np.inf]], "float32")
    nearly = np.array([[1.0, 2.0, -60.0]], "float32")
    student = tf.Variable([[1.0, 1.0, 1.0]])
    with tf.GradientTape() as tape:
        value = loss.compute_loss(teacher, student)
    assert float(value) == pytest.approx(float(loss.compute_loss(nearly, student)), rel=1e-5)
    assert np.isfinite(tape.gradient(value, student)).all()
    both = np.array([[1.0, 1.0, -np.inf]], "float32")
    assert np.isfinite(float(loss.compute_loss(teacher, both)))
