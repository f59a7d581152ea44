"""What a train step computes, how often each model runs, and every mode of `fit`."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tests import fresh
from tfcompress.distillation import Distiller, FeatureDistillation, LogitsDistillation
from tfcompress.model.kernels import compressible_kernels


class CountCalls(keras.layers.Layer):
    """Counts, in the graph, how often it runs in training and in inference."""

    def build(self, shape):
        self.count = self.add_weight(shape=(2,), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        self.count.assign_add([1.0, 0.0] if training else [0.0, 1.0])
        return x


def counting_net(channels, name):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(channels, 3, name="conv")(CountCalls(name="count")(inputs))
    x = layers.Dropout(0.5)(layers.BatchNormalization(name="norm")(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)), name=name)


def counts(model):
    return model.get_layer("count").count.numpy().tolist()


@pytest.mark.parametrize("losses", ["logits", "features"])
def test_each_model_runs_once_a_step(images, crossentropy, losses):
    teacher, student = counting_net(8, "t"), counting_net(4, "s")
    terms = [LogitsDistillation()]
    if losses == "features":
        terms += [FeatureDistillation("conv", "conv"), FeatureDistillation("norm", "norm")]
    distiller = Distiller(teacher, student, terms)
    distiller.compile("sgd", crossentropy)
    before = [v.numpy() for v in teacher.weights if "count" not in v.path]
    distiller.fit(*images, batch_size=16, epochs=2, verbose=0)
    assert counts(student) == [8, 0]
    assert counts(teacher) == [0, 8]
    distiller.evaluate(*images, batch_size=16, verbose=0)
    assert counts(student) == [8, 4]
    assert counts(teacher) == [0, 12]
    distiller.predict(images[0], batch_size=16, verbose=0)
    assert counts(student) == [8, 8]
    assert counts(teacher) == [0, 12]
    after = [v.numpy() for v in teacher.weights if "count" not in v.path]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_a_loop_of_ones_own_does_not_convert_the_loss(images, crossentropy):
    files = []

    def teacher(x):
        files.extend(frame.filename for frame in inspect.stack())
        return ops.mean(x, axis=(1, 2)) * ops.ones((10,))

    losses = LogitsDistillation(teacher_from_logits=True)
    distiller = Distiller(teacher, counting_net(4, "s"), losses)
    distiller.compile("sgd", crossentropy)
    files.clear()

    @tf.function
    def loss(x, y):
        return distiller.compute_loss(x, y)

    loss(*(part[:4] for part in images))
    # AutoGraph runs what it has converted from files of its own.
    assert sum("autograph_generated" in name for name in files) == 1
    assert "training" in inspect.signature(distiller.compute_loss).parameters


def test_a_student_stays_compiled(images, crossentropy):
    student = counting_net(4, "s")
    student.compile("sgd", crossentropy)
    distiller = Distiller(counting_net(8, "t"), student, LogitsDistillation())
    distiller.compile("sgd", crossentropy)
    distiller.fit(*images, batch_size=16, verbose=0)
    loss = distiller.student.evaluate(*images, batch_size=16, verbose=0)
    logs = distiller.evaluate(*images, batch_size=16, verbose=0, return_dict=True)
    assert logs["student_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("weights", [[0.25], [0.25, 2.0]])
@pytest.mark.parametrize("student_loss_weight", [0.0, 0.5, 1.0])
def test_total_is_the_stated_sum(make_net, images, crossentropy, weights, student_loss_weight):
    teacher, student = make_net(8, "t"), make_net(4, "s", kernel_regularizer="l2")
    losses = [LogitsDistillation(3.0), FeatureDistillation("relu", "relu", adapter=None)]
    teacher_wide = make_net(4, "t")
    losses = losses[: len(weights)]
    distiller = Distiller(
        teacher_wide if len(losses) > 1 else teacher,
        student,
        losses,
        loss_weights=weights,
        student_loss_weight=student_loss_weight,
    )
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    logs = distiller.evaluate(*images, batch_size=64, verbose=0, return_dict=True)
    x, y = images
    own = float(crossentropy(y, student(x)))
    regularization = float(sum(student.losses))
    expected = student_loss_weight * own + regularization
    for loss, weight in zip(losses, weights, strict=True):
        expected += weight * logs[loss.name]
    assert logs["student_loss"] == pytest.approx(own, rel=1e-4)
    assert logs["loss"] == pytest.approx(expected, rel=1e-4)
    assert float(distiller.compute_loss(x, y, training=False)) == pytest.approx(expected, rel=1e-4)
    y_pred = student(x)
    by_hand = float(distiller.compute_loss(x, y, y_pred, training=False))
    assert by_hand == pytest.approx(expected, rel=1e-4)


def test_update_is_the_gradient_of_the_total(make_net, images, crossentropy):
    teacher, student = make_net(8, "t"), make_net(4, "s")
    copy = keras.models.clone_model(student)
    copy.set_weights(student.get_weights())
    distiller = Distiller(
        teacher, student, LogitsDistillation(2.0), loss_weights=[0.25], student_loss_weight=0.5
    )
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy)
    x, y = images
    distiller.fit(x, y, batch_size=64, verbose=0)
    with tf.GradientTape() as tape:
        s = copy(x, training=True) / 2
        t = teacher(x, training=False) / 2
        p = tf.nn.softmax(t)
        kl = tf.reduce_sum(p * (tf.nn.log_softmax(t) - tf.nn.log_softmax(s)), -1)
        total = 0.5 * crossentropy(y, 2 * s) + 0.25 * 4 * tf.reduce_mean(kl)
    variables = copy.trainable_variables
    gradients = tape.gradient(total, variables)
    for mine, other, g in zip(student.trainable_variables, variables, gradients, strict=True):
        np.testing.assert_allclose(mine.numpy(), (other - 0.1 * g).numpy(), atol=2e-6)


def test_teacher_is_neither_tracked_nor_frozen_for_others(make_net):
    teacher, student = make_net(8, "t"), make_net(4, "s")
    distiller = Distiller(teacher, student, LogitsDistillation())
    assert teacher.trainable
    assert len(teacher.trainable_variables) > 0
    assert distiller.teacher is teacher
    assert teacher not in distiller.layers
    assert {id(v) for v in distiller.trainable_variables} == {
        id(v) for v in student.trainable_variables
    }
    assert compressible_kernels(distiller) == compressible_kernels(student)


@pytest.mark.parametrize("mode", ["plain", "steps", "eager", "jit", "mixed", "float16_only"])
def test_fit_modes(make_net, images, crossentropy, mode):
    if mode == "mixed":
        keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        student = make_net(4, "s")
        teacher = make_net(8, "t")
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    if mode == "float16_only":  # A mixed student under a float32 policy and a float32 teacher.
        keras.mixed_precision.set_dtype_policy("mixed_float16")
        try:
            student = make_net(4, "s16")
        finally:
            keras.mixed_precision.set_dtype_policy("float32")
    losses = [LogitsDistillation(4.0), FeatureDistillation("relu", "relu")]
    distiller = Distiller(teacher, student, losses)
    options = {
        "steps": {"steps_per_execution": 3},
        "eager": {"run_eagerly": True},
        "jit": {"jit_compile": True},
    }
    distiller.compile("adam", crossentropy, metrics=["accuracy"], **options.get(mode, {}))
    if mode in ("mixed", "float16_only"):
        assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    x, y = images
    history = distiller.fit(
        x, y, batch_size=16, epochs=2, validation_data=(x[:32], y[:32]), verbose=0
    ).history
    names = {"loss", "accuracy", "student_loss", "logits_distillation", "feature_distillation"}
    assert set(history) == names | {f"val_{name}" for name in names}
    assert all(np.isfinite(values).all() for values in history.values())
    assert int(distiller.optimizer.iterations) == 8
    predicted = distiller.predict(x, verbose=0)
    np.testing.assert_allclose(predicted, student.predict(x, verbose=0), atol=1e-6)


def test_weight_of_a_single_loss_counts(make_net, images, crossentropy):
    def total(weight):
        keras.utils.set_random_seed(3)
        losses = LogitsDistillation()
        net = Distiller(make_net(8, "t"), make_net(4, "s"), losses, loss_weights=[weight])
        net.compile("sgd", crossentropy, run_eagerly=True)
        return net.evaluate(*images, verbose=0, return_dict=True)

    a, b = total(1.0), total(0.25)
    assert a["loss"] - b["loss"] == pytest.approx(0.75 * a["logits_distillation"], rel=1e-3)


def test_label_free(make_net, images):
    x, _ = images
    teacher, student = make_net(8, "t"), make_net(4, "s")
    distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    history = distiller.fit(x, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    with_labels = Distiller(teacher, student, LogitsDistillation())
    with_labels.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(ValueError, match="student_loss_weight=0"):
        with_labels.fit(x, verbose=0)
    without_loss = Distiller(teacher, student, LogitsDistillation())
    without_loss.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match=r"Expected `compile\(loss=\.\.\.\)`"):
        without_loss.fit(*images, verbose=0)


def test_data_sets_with_weights_and_train_on_batch(make_net, images, crossentropy):
    x, y = images
    distiller = Distiller(make_net(8, "t"), make_net(4, "s"), LogitsDistillation())
    distiller.compile("sgd", crossentropy)
    ones = np.ones(len(x), "float32")
    data = tf.data.Dataset.from_tensor_slices((x, y, ones)).batch(16)
    distiller.fit(data, validation_data=data, shuffle=False, verbose=0)
    logs = distiller.train_on_batch(x, y, class_weight=dict.fromkeys(range(10), 2.0))
    assert np.isfinite(logs).all()
    assert np.isfinite(distiller.test_on_batch(x, y)).all()


def two_heads(width, name):
    inputs = keras.Input((8,), name="x")
    hidden = layers.Dense(width, activation="relu", name="hidden")(inputs)
    outputs = {
        "kind": layers.Dense(4, name="kind")(hidden),
        "value": layers.Dense(1, name="value")(hidden),
    }
    return keras.Model(inputs, outputs, name=name)


def test_several_outputs(crossentropy):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 8)).astype("float32")
    y = {"kind": rng.integers(0, 4, 32), "value": rng.normal(size=(32, 1)).astype("float32")}
    teacher, student = two_heads(16, "t"), two_heads(4, "s")
    losses = [
        LogitsDistillation(2.0, teacher_layer="kind", student_layer="kind"),
        FeatureDistillation("value", "value"),
        FeatureDistillation("hidden", "hidden"),
    ]
    distiller = Distiller(teacher, student, losses)
    distiller.compile(
        "sgd",
        {"kind": crossentropy, "value": "mse"},
        loss_weights={"kind": 1.0, "value": 0.5},
        metrics={"kind": "accuracy"},
        run_eagerly=True,
    )
    weight = {"kind": np.ones(32, "float32"), "value": np.zeros(32, "float32")}
    history = distiller.fit(x, y, sample_weight=weight, verbose=0).history
    assert {"feature_distillation", "feature_distillation_2"} < set(history)
    assert np.isfinite(history["loss"]).all()
    assert set(distiller.predict(x, verbose=0)) == {"kind", "value"}


def test_all_outputs_of_a_nested_structure_at_once():
    x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")

    def net(name):
        inputs = keras.Input((8,))
        outputs = {
            "a": [layers.Dense(3)(inputs), layers.Dense(5)(inputs)],
            "b": layers.Dense(2)(inputs),
        }
        return keras.Model(inputs, outputs, name=name)

    teacher, student = net("t"), net("s")
    distiller = Distiller(teacher, student, FeatureDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd", run_eagerly=True)
    logs = distiller.evaluate(x, verbose=0, return_dict=True)
    pairs = zip(
        keras.tree.flatten(teacher.predict(x, verbose=0)),
        keras.tree.flatten(student.predict(x, verbose=0)),
        strict=True,
    )
    assert logs["loss"] == pytest.approx(sum(((t - s) ** 2).mean() for t, s in pairs), rel=1e-4)
    distiller.fit(x, verbose=0)


class Subclassed(keras.Model):
    """A model without a graph, whose call has no `training`."""

    def __init__(self, width):
        super().__init__()
        self.hidden = layers.Dense(width, activation="relu", name="hidden")
        self.head = layers.Dense(10, name="head")

    def call(self, x):
        return self.head(self.hidden(ops.reshape(x, (-1, 64))))


def test_subclassed_models_are_tapped_and_bound_at_the_first_batch(images, crossentropy):
    losses = [
        LogitsDistillation(teacher_from_logits=True, student_from_logits=True),
        FeatureDistillation("hidden", "hidden"),
    ]
    student = Subclassed(4)
    distiller = Distiller(Subclassed(16), student, losses)
    distiller.compile(keras.optimizers.SGD(0.1), crossentropy)
    distiller.fit(*images, verbose=0)
    adapter = distiller.distillation_losses[1].adapters[0]
    assert adapter.kernel.shape == (4, 16)
    before = adapter.kernel.numpy()
    distiller.fit(*images, verbose=0)
    assert not np.array_equal(before, adapter.kernel.numpy())


def test_two_replicas_learn_what_one_does(images):
    fresh.run("from tests.distillation import replicas; replicas.main()")
