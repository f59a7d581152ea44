"""Keras' own losses, and losses of users."""

import keras
import numpy as np
import pytest

from tfcompress.distillation import Distiller
from tfcompress.distillation.losses.foreign import KerasDistillationLoss

RNG = np.random.default_rng(0)
T, S = (RNG.normal(size=(6, 5)).astype("float32") for _ in range(2))
LOSSES = {
    "kl": lambda: keras.distillation.LogitsDistillation(3.0),
    "crossentropy": lambda: keras.distillation.LogitsDistillation(
        2.0, loss=keras.losses.CategoricalCrossentropy(from_logits=True)
    ),
    "mse": lambda: keras.distillation.FeatureDistillation("mse"),
    "cosine": lambda: keras.distillation.FeatureDistillation(keras.losses.CosineSimilarity()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_is_keras_own_and_weights_count(name):
    loss = LOSSES[name]()
    term = KerasDistillationLoss(loss)
    value = float(loss.compute_loss(T, S))
    assert float(term.compute_loss(T, S)) == pytest.approx(value, rel=1e-6)
    ones = np.ones(6, "float32")
    assert float(term.compute_loss(T, S, sample_weight=ones)) == pytest.approx(value, rel=1e-5)
    assert float(term.compute_loss(T, S, sample_weight=0 * ones)) == 0.0
    first = np.array([6, 0, 0, 0, 0, 0], "float32")
    alone = float(loss.compute_loss(T[:1], S[:1]))
    assert float(term.compute_loss(T, S, sample_weight=first)) == pytest.approx(alone, rel=1e-5)


def test_in_a_distiller_with_weights_and_saving(make_net, images, crossentropy, tmp_path):
    losses = [
        keras.distillation.LogitsDistillation(3.0),
        keras.distillation.FeatureDistillation("mse", "pool", "pool"),
    ]
    distiller = Distiller(make_net(4, "t"), make_net(4, "s"), losses, loss_weights=[0.25, 2.0])
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    distiller.fit(*images, class_weight=dict.fromkeys(range(10), 0.5), verbose=0)
    logs = distiller.evaluate(*images, verbose=0, return_dict=True)
    parts = (
        logs["student_loss"],
        logs["keras_logits_distillation"],
        logs["keras_feature_distillation"],
    )
    assert logs["loss"] == pytest.approx(parts[0] + 0.25 * parts[1] + 2.0 * parts[2], rel=1e-5)
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    assert again.evaluate(*images, verbose=0)[0] == pytest.approx(logs["loss"], rel=1e-5)


class Own(keras.distillation.DistillationLoss):
    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return keras.ops.mean(keras.ops.abs(teacher_outputs - student_outputs))


class OwnWeighted(Own):
    def compute_loss(self, teacher_outputs, student_outputs, sample_weight=None):
        error = keras.ops.mean(keras.ops.abs(teacher_outputs - student_outputs), -1)
        return keras.ops.mean(error if sample_weight is None else error * sample_weight)


def test_losses_of_users(make_net, images, crossentropy):
    x, y = images
    zero = np.zeros(64, "float32")
    for loss, honours in ((Own(), False), (OwnWeighted(), True)):
        distiller = Distiller(make_net(8, "t"), make_net(4, "s"), loss)
        distiller.compile("sgd", crossentropy, run_eagerly=True)
        assert distiller.evaluate(x, y, verbose=0, return_dict=True)["loss"] > 0
        if honours:
            assert distiller.evaluate(x, y, sample_weight=zero, verbose=0)[0] == 0
        else:
            with pytest.raises(ValueError, match="that takes `sample_weight`"):
                distiller.evaluate(x, y, sample_weight=zero, verbose=0)
