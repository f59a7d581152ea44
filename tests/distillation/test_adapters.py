"""What a hint puts between a student's feature and a teacher's of another shape."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.distillation import AttentionTransfer, Distiller, FeatureDistillation, TeacherCache


def test_it_runs_in_the_mode_of_the_student(make_net, images, crossentropy):
    adapter = keras.Sequential([layers.Dense(8), layers.BatchNormalization(momentum=0.5)])
    hint = FeatureDistillation("pool", "pool", adapter=adapter)
    distiller = Distiller(make_net(8, "t"), make_net(4, "s"), hint)
    distiller.compile("sgd", crossentropy, run_eagerly=True)
    norm = adapter.layers[1]
    distiller.evaluate(*images, verbose=0)
    assert not norm.moving_mean.numpy().any()
    distiller.fit(*images, verbose=0)
    assert norm.moving_mean.numpy().any()


def test_what_it_adds_itself_is_in_the_total(make_net, images, crossentropy):
    x, y = images
    teacher = make_net(8, "t")
    adapter = layers.Dense(8, activity_regularizer=keras.regularizers.L2(1.0))
    hint = FeatureDistillation("pool", "pool", adapter=adapter)
    cache = TeacherCache.compute(teacher, x, layers=["pool"])
    distiller = Distiller(cache, make_net(4, "s"), hint)
    distiller.compile("sgd", crossentropy)
    # Each mode is traced after the other; the last one has no teacher, so that the hint is idle.
    history = distiller.fit(
        cache.pair(x), y, batch_size=64, validation_data=(cache.pair(x), y), verbose=0
    ).history
    parts = history["val_student_loss"][0] + history["val_feature_distillation"][0]
    pooled = distiller.student.get_layer("pool")
    feature = keras.Model(distiller.student.input, pooled.output)(x)
    added = float(keras.ops.sum(adapter(feature) ** 2)) / len(x)
    assert history["val_loss"][0] == pytest.approx(parts + added, rel=1e-4)
    logs = distiller.evaluate(x, y, batch_size=64, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["student_loss"], rel=1e-5)


def test_whole_outputs_get_none(images):
    def net(classes, name="out"):
        inputs = keras.Input((4,))
        return keras.Model(inputs, layers.Dense(classes, name=name)(inputs))

    with pytest.raises(ValueError, match="whole outputs get no learned map"):
        Distiller(net(9), net(10), FeatureDistillation())
    loss = FeatureDistillation("out", "out")
    Distiller(net(9), net(10), loss)
    assert loss.adapters[0].units == 9


def test_maps_whose_sizes_are_known_at_run_time(crossentropy):
    def net(width, stride):
        inputs = keras.Input((None, None, 1))
        x = layers.Conv2D(width, 3, stride, padding="same", name="map")(inputs)
        return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))

    x, y = np.random.default_rng(0).random((8, 8, 8, 1), np.float32), np.arange(8) % 4
    teacher, student = net(3, 1), net(3, 2)
    losses = [FeatureDistillation("map", "map"), AttentionTransfer("map", "map")]
    distiller = Distiller(teacher, student, losses)
    distiller.compile("sgd", crossentropy)
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    wide = np.asarray(teacher.get_layer("map")(x)).reshape(8, 4, 2, 4, 2, 3).mean((2, 4))
    narrow = np.asarray(student.get_layer("map")(x))
    assert logs["feature_distillation"] == pytest.approx(((wide - narrow) ** 2).mean(), rel=1e-4)
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"]).all()


def test_a_used_loss_is_refused_elsewhere(make_net):
    loss = FeatureDistillation("pool", "pool")
    Distiller(make_net(4, "t"), make_net(4, "s"), loss)  # Learns nothing.
    Distiller(make_net(4, "t2"), make_net(4, "s2"), loss)
    with pytest.raises(ValueError, match="belongs to another Distiller"):
        Distiller(make_net(8, "t3"), make_net(4, "s3"), loss)
