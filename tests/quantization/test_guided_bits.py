"""`GuidedBits`: layers are lowered in turn, and what broke the metric is taken back."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc


class Scripted(keras.callbacks.Callback):
    """A metric that falls as soon as one layer has fewer than 8 bits."""

    def __init__(self, guided, spoiling):
        super().__init__()
        self.guided, self.spoiling, self.seen = guided, spoiling, []

    def on_epoch_end(self, epoch, logs=None):
        bits = self.guided._bits()
        self.seen.append(bits)
        logs["val_accuracy"] = 0.5 if bits[self.spoiling] < 8 else 1.0


def quantized():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), name="features")
    h = layers.Dense(16, activation="relu", name="first")(inputs)
    h = layers.Dense(16, activation="relu", name="second")(h)
    model = keras.Model(inputs, layers.Dense(2, name="logits")(h))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    return model, tfc.quantize(model, "int8", calibration_data=x), x, y


def test_what_breaks_the_metric_is_taken_back(tmp_path):
    given, model, x, y = quantized()
    guided = tfc.callbacks.GuidedBits("val_accuracy", bits=(4,), sensitivity={"logits": 1.0})
    scripted = Scripted(guided, "second")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student = tfc.Distiller(given, model, tfc.LogitsDistillation())
    student.compile("adam", loss)
    student.fit(x, y, epochs=7, verbose=0, callbacks=[scripted, guided])
    # Those of no known sensitivity first, the one with most weights before the others.
    lowered = [[n for n, b in bits.items() if b < 8] for bits in scripted.seen]
    assert lowered[:4] == [[], ["second"], ["first"], ["first", "logits"]]
    assert guided.chosen == {"first": 4, "second": 8, "logits": 4}
    report = tfc.export_tflite(model, tmp_path / "model.tflite", verify_data=x)
    assert {r.name: r.num_bits for r in report.layers} == guided.chosen
    assert report.agreement == 1.0
    assert [e.weights for e in model.plan if e.weights] == [
        "int4 per channel",
        "int8 per channel",
        "int4 per channel",
    ]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == 7:
            raise KeyboardInterrupt


def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(tmp_path):
    def run(*before):
        _, model, x, y = quantized()
        guided = tfc.callbacks.GuidedBits(bits=(6, 4), patience=2)
        backup = tfc.callbacks.BackupAndRestore(tmp_path, save_freq=1)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, run_eagerly=True)
        used = [*before, Scripted(guided, "second"), guided, backup]
        model.fit(x, y, batch_size=32, shuffle=False, epochs=6, verbose=0, callbacks=used)
        return model, guided

    whole, expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(Stop())
    resumed, found = run()
    assert found.chosen == expected.chosen == {"first": 4, "second": 8, "logits": 6}
    for one, other in zip(whole.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)


def test_several_steps_to_an_execution_and_a_second_fit():
    inputs = keras.Input((4,), name="features")
    model = keras.Model(inputs, layers.Dense(2, name="only")(inputs))
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    model = tfc.quantize(model, calibration_data=x)
    model.compile("sgd", "mse", steps_per_execution=16)
    for bits in (6, 4):
        guided = tfc.callbacks.GuidedBits("loss", max_drop=10.0, bits=(bits,))
        model.fit(x, x[:, :2], batch_size=2, epochs=2, verbose=0, callbacks=[guided])
        assert guided.chosen == {"only": bits}


def test_nothing_is_lowered_where_nothing_holds():
    _, model, x, y = quantized()
    guided = tfc.callbacks.GuidedBits("val_accuracy", baseline=2.0, max_drop=0.1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=[guided])
    assert set(guided.chosen.values()) == {8}


def test_sensitivities_go_by_the_names_of_a_plan():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(16, name="big")], name="backbone")
    inputs = keras.Input((8,), name="features")
    given = keras.Model(inputs, layers.Dense(2, name="logits")(inner(inputs)))
    x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    assert "backbone/big" in {entry.name for entry in tfc.plan(given)}

    def lowered(sensitivity):
        model = tfc.quantize(given, calibration_data=x)
        model.compile("sgd", "mse")
        guided = tfc.callbacks.GuidedBits("loss", max_drop=100.0, sensitivity=sensitivity)
        model.fit(x, x[:, :2], epochs=2, verbose=0, callbacks=[guided])
        return {name for name, bits in guided.chosen.items() if bits == 4}

    assert lowered({}) == {"big"}
    for name in ("backbone/big", "big", "backbone/.*"):
        assert lowered({name: 1.0}) == {"logits"}
    with pytest.raises(ValueError, match=r"`sensitivity`.*'bag'.*Did you mean 'big'"):
        lowered({"bag": 1.0})


def test_wrong_arguments():
    with pytest.raises(ValueError, match="falling"):
        tfc.callbacks.GuidedBits(bits=(2, 4))
    with pytest.raises(ValueError, match="mode="):
        tfc.callbacks.GuidedBits("val_thing")
    given, model, x, y = quantized()
    given.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="quantized model"):
        given.fit(x, y, verbose=0, callbacks=[tfc.callbacks.GuidedBits("loss")])
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="metric of each epoch"):
        model.fit(x, x[:, :2], verbose=0, callbacks=[tfc.callbacks.GuidedBits("val_loss")])
