"""The whole distiller, or the student alone, through a file."""

import keras
import numpy as np
import pytest

from tests import fresh
from tfcompress.distillation import (
    AttentionTransfer,
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    RelationalAngle,
)


@pytest.fixture
def fitted(make_net, images, crossentropy):
    losses = [
        LogitsDistillation(4.0),
        FeatureDistillation("pool", "pool"),
        AttentionTransfer("conv", "conv"),
        RelationalAngle("pool", "pool"),
    ]
    distiller = Distiller(
        make_net(8, "t"), make_net(4, "s"), losses, loss_weights=[1.0, 0.5, 0.1, 2.0]
    )
    distiller.compile("adam", crossentropy, metrics=["accuracy"], run_eagerly=True)
    distiller.fit(*images, verbose=0)
    return distiller


def own_config(distiller):
    """Without the two models' own configs, which differ in the ids of shared objects."""
    config = distiller.get_config()
    return {key: value for key, value in config.items() if key not in ("teacher", "student")}


def test_whole(fitted, images, tmp_path):
    fitted.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    assert own_config(again) == own_config(fitted)
    for a, b in zip(fitted.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(fitted.teacher.weights, again.teacher.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    logs = [m.evaluate(*images, verbose=0, return_dict=True) for m in (fitted, again)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)
    assert again.optimizer.iterations == fitted.optimizer.iterations
    histories = []
    for model in (
        fitted,
        again,
    ):  # Training goes on the same, optimizer state and adapter included.
        keras.utils.set_random_seed(1)
        histories.append(model.fit(*images, shuffle=False, verbose=0).history["loss"])
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)


def test_a_given_adapter_is_saved_with_its_weights(make_net, images, crossentropy, tmp_path):
    hint = FeatureDistillation("pool", "pool", adapter=keras.layers.Dense(8))
    distiller = Distiller(make_net(8, "t"), make_net(4, "s"), hint)
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    distiller.fit(*images, verbose=0)
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    logs = [m.evaluate(*images, verbose=0, return_dict=True) for m in (distiller, again)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_student_alone_is_an_ordinary_model_in_a_fresh_process(fitted, images, tmp_path):
    fitted.student.save(tmp_path / "s.keras")
    np.save(tmp_path / "x.npy", images[0])
    code = (
        "import sys, keras, numpy as np; f = sys.argv[1];"
        "m = keras.saving.load_model(f + '/s.keras');"
        "np.save(f + '/y.npy', m.predict(np.load(f + '/x.npy'), verbose=0));"
        "assert 'tfcompress' not in sys.modules"
    )
    fresh.run(code, tmp_path)
    outputs = np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(outputs, fitted.predict(images[0], verbose=0), atol=1e-6)


def test_weights_and_backup(fitted, make_net, images, crossentropy, tmp_path):
    fitted.save_weights(tmp_path / "d.weights.h5")
    losses = [type(x).from_config(x.get_config()) for x in fitted.distillation_losses]
    other = Distiller(make_net(8, "t"), make_net(4, "s"), losses)
    other.load_weights(tmp_path / "d.weights.h5")
    np.testing.assert_array_equal(
        other.predict(images[0], verbose=0), fitted.predict(images[0], verbose=0)
    )
    np.testing.assert_array_equal(other.teacher(images[0]), fitted.teacher(images[0]))
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    fitted.fit(*images, epochs=2, callbacks=[backup], verbose=0)
