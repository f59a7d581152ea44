"""Training that stops and goes on: backups, checkpoints, students without a graph."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.distillation import (
    DistillationSchedule,
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
)


@keras.saving.register_keras_serializable(package="test_resuming")
class Plain(keras.Model):
    """A model without a graph."""

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.hidden = layers.Dense(width, name="hidden")
        self.head = layers.Dense(10, name="out")

    def call(self, x):
        return self.head(self.hidden(ops.reshape(x, (-1, 64))))

    def get_config(self):
        return {"width": self.width}


@pytest.fixture
def make(make_net, crossentropy):
    def build(kind):
        keras.utils.set_random_seed(3)
        stated = {"teacher_from_logits": True, "student_from_logits": True}
        if kind == "graph":
            teacher, student, layer = make_net(8, "t"), make_net(4, "s"), "pool"
        else:
            teacher, student, layer = Plain(8), Plain(4), "hidden"
        losses = [LogitsDistillation(4.0, **stated), FeatureDistillation(layer, layer)]
        distiller = Distiller(teacher, student, losses)
        distiller.compile("adam", crossentropy, run_eagerly=True)
        return distiller

    return build


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["graph", "no graph"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(make, images, tmp_path, kind):
    def fit(distiller, *callbacks):
        schedule = DistillationSchedule(temperature=lambda step: 4.0 + step)
        options = {"epochs": 2, "batch_size": 32, "shuffle": False, "verbose": 0}
        return distiller.fit(*images, callbacks=[schedule, *callbacks], **options).history

    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    whole, stopped, resumed = (make(kind) for _ in range(3))
    resumed.student.set_weights([0 * w for w in resumed.student.get_weights()])
    for distiller in (whole, stopped, resumed):
        keras.utils.set_random_seed(4)  # Of the adapter, which is made here without a graph.
        distiller(images[0][:1])
    reference = fit(whole)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, backup, Interrupt())
    history = fit(resumed, keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    for name, values in history.items():
        assert values == pytest.approx(reference[name][1:], rel=1e-5)
    for a, b in zip(whole.trainable_variables, resumed.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["graph", "no graph"])
def test_a_checkpoint_goes_on_as_the_original(make, images, tmp_path, kind):
    distiller = make(kind)
    options = {"batch_size": 32, "shuffle": False, "verbose": 0}
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "d.keras")
    distiller.fit(*images, callbacks=[checkpoint], **options)
    again = keras.saving.load_model(tmp_path / "d.keras")
    assert int(again.optimizer.iterations) == 2
    first, second = (model.fit(*images, **options).history for model in (distiller, again))
    for name, values in first.items():
        assert second[name] == pytest.approx(values, rel=1e-5)


def test_weights_of_a_student_without_a_graph(make, images, tmp_path):
    distiller, other = make("no graph"), make("no graph")
    distiller.fit(*images, verbose=0)
    distiller.save_weights(tmp_path / "d.weights.h5")
    other.build((None, 8, 8, 1))
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "d.weights.h5")
    logs = [m.evaluate(*images, verbose=0, return_dict=True) for m in (distiller, other)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_an_optimizer_built_before_the_first_batch(images, crossentropy):
    def build(student):
        distiller = Distiller(Plain(8), student, FeatureDistillation("hidden", "hidden"))
        distiller.compile("adam", crossentropy)
        distiller.optimizer.build(distiller.trainable_variables)
        return distiller

    student = Plain(4)
    student(images[0][:2])
    build(student).fit(*images, verbose=0)
    with pytest.raises(ValueError, match=r"Call `distiller\(x\[:1\]\)` first"):
        build(Plain(4)).fit(*images, verbose=0)
