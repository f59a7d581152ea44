"""`GuidedWidths`: groups are narrowed in turn, and what broke the metric is taken back."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.pruning.structure.oracle import outputs, relative_error

X = np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype("float32")
Y = (X.mean((1, 2, 3)) > 0).astype(int)


class Scripted(keras.callbacks.Callback):
    """A metric that falls as soon as a layer has fewer channels than it should."""

    def __init__(self, layer, least):
        super().__init__()
        self.layer, self.least, self.seen = layer, least, []

    def on_epoch_end(self, epoch, logs=None):
        model = getattr(self.model, "student", self.model)
        kernels = {n: model.get_layer(n).kernel.numpy() for n in ("first", "second", "third")}
        widths = {n: int(k.any(tuple(range(k.ndim - 1))).sum()) for n, k in kernels.items()}
        self.seen.append(widths)
        logs["val_accuracy"] = 0.5 if widths[self.layer] < self.least else 1.0


def network(**options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2), name="image")
    h = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    h = layers.Conv2D(16, 3, name="second")(h)
    h = layers.ReLU()(layers.BatchNormalization()(h))
    h = layers.Dense(8, "relu", name="third")(layers.GlobalAveragePooling2D()(h))
    model = keras.Model(inputs, layers.Dense(2, name="logits")(layers.Dropout(0.1)(h)))
    return compiled(model, **options)


def compiled(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"], **options)
    return model


def guided(**options):
    return tfc.callbacks.GuidedWidths(**{"rate": 0.5, "round_to": 2, "verbose": 0, **options})


def fit(model, callbacks, epochs, **options):
    return model.fit(
        X, Y, batch_size=16, shuffle=False, epochs=epochs, verbose=0, callbacks=callbacks, **options
    )


def test_what_breaks_the_metric_is_taken_back_inside_a_distiller():
    student = network()
    distiller = tfc.Distiller(network(), student, tfc.LogitsDistillation())
    compiled(distiller, steps_per_execution=16)
    callback = guided(order="turns", sensitivity={"third": 1.0})
    scripted = Scripted("second", 16)
    history = fit(distiller, [scripted, callback], 6).history
    # Those of no sensitivity first; what broke the metric comes back after an epoch.
    assert scripted.seen[0] == {"first": 8, "second": 16, "third": 8}
    assert sum(seen["second"] == 8 for seen in scripted.seen) == 1
    assert [seen["third"] for seen in scripted.seen[:3]] == [8, 8, 8]
    assert callback.chosen["second"] == 1.0
    assert callback.chosen["first"] < 1.0
    assert history["macs_left"][0] == 1.0
    assert callback.pruner.left() == min(history["macs_left"])
    assert all(v.constraint is None for v in student.trainable_variables)
    smaller = tfc.shrink(student)
    assert smaller.get_layer("first").filters == 8 * callback.chosen["first"]
    assert smaller.get_layer("second").filters == 16
    assert relative_error(outputs(student, [X]), outputs(smaller, [X])) < 1e-5
    assert tfc.count_macs(smaller) / tfc.count_macs(student) == pytest.approx(
        callback.pruner.left()
    )


def test_quantized_and_a_second_fit_goes_on():
    inputs = keras.Input((128,), name="features")
    h = layers.Dense(8, "relu", name="first")(inputs)
    h = layers.Dense(8, "relu", name="second")(h)
    float_model = keras.Model(inputs, layers.Dense(2, name="logits")(h))
    data = X.reshape(64, -1)
    model = compiled(tfc.quantize(float_model, calibration_data=data))

    def train(epochs):
        callback = guided(max_drop=10.0, bounds={"second": (1.0, 1.0)})
        given = {"validation_data": (data, Y), "callbacks": [callback]}
        history = model.fit(data, Y, epochs=epochs, verbose=0, **given).history
        assert callback.chosen["second"] == 1.0
        return callback.pruner.left(), history["macs_left"]

    left, _ = train(2)
    further, seen = train(2)
    assert seen[0] == left < 0.8
    assert further < left
    smaller = tfc.shrink(model)
    step = float(next(v for v in model.layers[-1].variables if v.name == "scale").value)
    before, after = outputs(model, [data])[0], outputs(smaller, [data])[0]
    assert np.abs(before - after).max() <= step * 1.001


def test_mixed_precision_and_nothing_holds():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy(policy)
    hopeless = guided(baseline=2.0, max_drop=0.1)
    fit(model, [hopeless], 2, validation_data=(X, Y))
    assert set(hopeless.chosen.values()) == {1.0}
    callback = guided(max_drop=10.0)
    fit(model, [callback], 2, validation_data=(X, Y))
    smaller = tfc.shrink(model)
    assert tfc.count_macs(smaller) / tfc.count_macs(model) == pytest.approx(callback.pruner.left())
    assert callback.pruner.left() < 1.0


class Stop(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            raise KeyboardInterrupt


def dense():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((128,), name="features")
    h = layers.Dense(8, "relu", name="first")(inputs)
    h = layers.Dropout(0.1)(layers.Dense(8, "relu", name="second")(h))
    h = layers.Dense(8, "relu", name="third")(h)
    return compiled(keras.Model(inputs, layers.Dense(2, name="logits")(h)), run_eagerly=True)


def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(tmp_path):
    def run(model, folder, *before, **options):
        callback = guided(patience=2, **options)
        backup = tfc.callbacks.BackupAndRestore(folder, save_freq=1)
        used = [*before, Scripted("second", 8), callback, backup]
        data = X.reshape(64, -1), Y
        model.fit(*data, batch_size=32, shuffle=False, epochs=6, verbose=0, callbacks=used)
        return callback

    whole = dense()
    expected = run(whole, tmp_path / "whole")
    assert expected.chosen["second"] == 1.0
    assert min(expected.chosen.values()) < 1.0
    for step in (5, 10):
        with pytest.raises(KeyboardInterrupt):
            run(dense(), tmp_path / "part", Stop(step))
        resumed = dense()
        assert run(resumed, tmp_path / "part").chosen == expected.chosen
        for one, other in zip(whole.variables, resumed.variables, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)
    with pytest.raises(KeyboardInterrupt):
        run(dense(), tmp_path / "part", Stop(5))
    with pytest.raises(ValueError, match="backup of the same GuidedWidths"):
        run(dense(), tmp_path / "part", rate=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -0.1}, "max_drop"),
        ({"max_drop": float("nan")}, "max_drop"),
        ({"rate": 1.0}, "rate"),
        ({"order": "random"}, "order"),
        ({"patience": 0}, "patience"),
        ({"monitor": "val_thing"}, "mode="),
        ({"mode": "up"}, "mode"),
        ({"budget": "time"}, "budget"),
        ({"round_to": 0}, "round_to"),
        ({"criterion": "taylor"}, "looks at batches"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        guided(**options)


def test_wrong_models_and_metrics():
    model = network(run_eagerly=True)
    with pytest.raises(ValueError, match="metric of each epoch"):
        fit(model, [guided()], 1)
    with pytest.raises(ValueError, match="metric of an epoch"):
        fit(model, [guided(baseline=0.9)], 1)
    with pytest.raises(ValueError, match="sensitivity"):
        fit(model, [guided(sensitivity={"fifth": 1.0})], 1)
    inputs = keras.Input((4,))
    single = compiled(keras.Model(inputs, layers.Dense(2)(inputs)))
    with pytest.raises(ValueError, match="No channel"):
        single.fit(X[:, 0, :2, 0].repeat(2, 1), Y, verbose=0, callbacks=[guided()])
