"""Schedules move the variables that the traced step reads."""

import keras
import numpy as np
import pytest

from tfcompress.distillation import DistillationSchedule, Distiller, LogitsDistillation


class Watch(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        model = self.model
        loss = model.distillation_losses[0]
        values = (loss.temperature, model.loss_weights[0], model.student_loss_weight)
        self.seen.append(tuple(float(v) for v in values))


def test_values_follow_the_optimizer_steps(make_net, images, crossentropy):
    distiller = Distiller(make_net(8, "t"), make_net(4, "s"), LogitsDistillation())
    distiller.compile("sgd", crossentropy)
    watch = Watch()
    schedule = DistillationSchedule(
        temperature=lambda step: 1.0 + step,
        loss_weights=[keras.optimizers.schedules.PolynomialDecay(1.0, 4, 0.0)],
        student_loss_weight=lambda step: 0.5 * step,
    )
    for _ in range(2):  # The second fit goes on where the first one stopped.
        distiller.fit(*images, batch_size=32, callbacks=[schedule, watch], verbose=0)
    expected = [(1.0, 1.0, 0.0), (2.0, 0.75, 0.5), (3.0, 0.5, 1.0), (4.0, 0.25, 1.5)]
    assert watch.seen == expected


def test_a_moved_weight_changes_the_update(make_net, images, crossentropy):
    def fit(schedule):
        keras.utils.set_random_seed(5)
        distiller = Distiller(make_net(8, "t"), make_net(4, "s"), LogitsDistillation(4.0))
        distiller.compile(keras.optimizers.SGD(0.1), crossentropy)
        logs = distiller.fit(*images, batch_size=16, callbacks=schedule, verbose=0).history
        return logs["loss"][0], logs["student_loss"][0]

    off = DistillationSchedule(loss_weights=[lambda step: 0.0])
    total, own = fit([off])
    assert total == pytest.approx(own, rel=1e-5)
    total, own = fit([])
    assert total > own + 1e-4


@pytest.mark.parametrize(
    "options",
    [{"temperature": lambda step: 0.0}, {"student_loss_weight": lambda step: float("nan")}],
)
def test_values_out_of_range_are_told(make_net, images, crossentropy, options):
    distiller = Distiller(make_net(8, "t"), make_net(4, "s"), LogitsDistillation())
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    with pytest.raises(ValueError, match=f"Expected the schedule of `{next(iter(options))}`"):
        distiller.fit(*images, callbacks=[DistillationSchedule(**options)], verbose=0)


def test_values_are_saved(make_net, images, crossentropy, tmp_path):
    distiller = Distiller(make_net(8, "t"), make_net(4, "s"), LogitsDistillation(4.0))
    distiller.compile("sgd", crossentropy)
    schedule = DistillationSchedule(temperature=lambda step: 2.5)
    distiller.fit(*images, callbacks=[schedule], verbose=0)
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    assert float(again.distillation_losses[0].temperature) == 2.5
    np.testing.assert_array_equal(
        again.student.get_weights()[0], distiller.student.get_weights()[0]
    )
