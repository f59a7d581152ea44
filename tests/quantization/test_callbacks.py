"""The quantization schedule."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize


@pytest.fixture
def data():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    # Ranges that grow from batch to batch.
    return x * np.linspace(1, 5, 64, dtype=np.float32)[:, None], np.zeros((64, 3), np.float32)


@pytest.fixture
def quantized():
    inputs = keras.Input((4,))
    x = layers.BatchNormalization(name="bn")(layers.Dense(5)(inputs))
    return tfc.quantize(keras.Model(inputs, layers.Dense(3, activation="tanh")(x)))


class Watch(keras.callbacks.Callback):
    """Records the states of the graph after every step, and counts tracings."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def on_train_batch_end(self, batch, logs=None):
        q = [la for la in self.model.layers if isinstance(la, FakeQuantize)][1]
        bn = self.model.get_layer("bn")
        self.rows.append(
            (
                float(q.enabled.numpy()),
                q.range[1],
                bn.moving_mean.numpy().copy(),
                bn.gamma.numpy().copy(),
            )
        )


def fit(model, data, schedule, epochs=1):
    watch = Watch()
    model.fit(
        *data, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[schedule, watch]
    )
    return watch.rows


def test_start_and_freezing_by_step_without_a_new_trace(quantized, data):
    traces = []
    call = quantized.call

    def counted(*args, **kwargs):
        traces.append(1)
        return call(*args, **kwargs)

    quantized.call = counted
    quantized.compile(keras.optimizers.SGD(0.1), "mse")
    schedule = tfc.callbacks.QuantizationSchedule(2, freeze_ranges_step=5, freeze_batch_norm_step=6)
    rows = fit(quantized, data, schedule)
    enabled, highs, means, gammas = zip(*rows, strict=True)
    assert enabled == (0, 0, 1, 1, 1, 1, 1, 1)
    # Ranges move from the first step on, also while nothing is rounded yet.
    assert len(set(highs[:5])) == 5
    assert highs[4] == highs[5] == highs[7]
    assert not np.array_equal(means[4], means[5])
    np.testing.assert_array_equal(means[5], means[7])
    # Frozen statistics do not freeze the scale.
    assert not np.array_equal(gammas[6], gammas[7])
    assert len(traces) == 1


def test_the_clock_is_the_optimizers_so_a_second_fit_goes_on(quantized, data):
    quantized.compile(keras.optimizers.SGD(0.1), "mse")
    schedule = tfc.callbacks.QuantizationSchedule(freeze_ranges_step=12)
    first = fit(quantized, data, schedule)
    second = fit(quantized, data, tfc.callbacks.QuantizationSchedule(freeze_ranges_step=12))
    assert first[-1][1] != second[2][1] != second[3][1]
    assert second[3][1] == second[7][1]


def test_fixed_ranges_stay_fixed_and_wrong_steps_are_refused(quantized, data):
    quantized.compile("sgd", "mse")
    fit(quantized, data, tfc.callbacks.QuantizationSchedule())
    last = quantized.layers[-1]
    assert last.fixed_range == (-1.0, 127 / 128)
    assert float(last.scale.numpy()) == 1 / 128
    for options in ({"start_step": -1}, {"freeze_ranges_step": 1.5}):
        with pytest.raises(ValueError, match=r"to be a step from 0 on\. Received"):
            tfc.callbacks.QuantizationSchedule(**options)


@pytest.mark.parametrize(
    "callback",
    [
        tfc.callbacks.QuantizationSchedule,
        lambda **given: tfc.callbacks.IterativeFreezing(0.02, **given),
        lambda **given: tfc.callbacks.IncrementalFreezing({0: 0.5, 2: 1.0}, **given),
    ],
    ids=["schedule", "iterative", "incremental"],
)
def test_batch_norm_is_estimated_again_when_fit_ends(quantized, data, callback):
    quantized.compile(keras.optimizers.SGD(0.1), "mse")
    given = callback(reestimate_batch_norm=data[0])
    quantized.fit(*data, batch_size=8, verbose=0, callbacks=[given])
    bn = quantized.get_layer("bn")
    found = [bn.moving_mean.numpy(), bn.moving_variance.numpy()]
    before = keras.Model(quantized.inputs, bn.input)
    values = before.predict(data[0], batch_size=32, verbose=0)
    # Batches of 32, whose statistics are averaged.
    parts = values.reshape(2, 32, -1)
    np.testing.assert_allclose(found[0], parts.mean(1).mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], parts.var(1).mean(0), rtol=1e-3, atol=1e-5)


def test_a_model_without_quantizers_is_refused(data):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"Expected a quantized model.*tfcompress\.quantize"):
        model.fit(*data, verbose=0, callbacks=[tfc.callbacks.QuantizationSchedule()])


@pytest.mark.parametrize(
    ("data", "message"),
    [(True, "Received: bool"), (np.zeros((8, 5), np.float32), "shape"), ([], "none")],
)
@pytest.mark.parametrize(
    "make",
    [
        tfc.callbacks.QuantizationSchedule,
        tfc.callbacks.IterativeFreezing,
        lambda **options: tfc.callbacks.IncrementalFreezing({0: 1.0}, **options),
    ],
)
def test_data_of_batch_norm_are_checked_before_the_first_step(make, data, message):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4, use_bias=False)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.ReLU()(x)))
    images = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    model = tfc.quantize(model, "int4", calibration_data=images)
    model.compile("sgd", "mse")
    before = int(model.optimizer.iterations)
    with pytest.raises((TypeError, ValueError), match=message):
        model.fit(images, images[:, :2], verbose=0, callbacks=[make(reestimate_batch_norm=data)])
    assert int(model.optimizer.iterations) == before


@pytest.mark.parametrize("per_channel", [True, False])
def test_statistics_are_those_of_the_kernels_that_were_trained(per_channel):
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    images = random.normal(size=(64, 6, 6, 3)).astype("float32") * np.linspace(0.2, 3, 64)[
        :, None, None, None
    ].astype("float32")
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, use_bias=False)(x))
    scheme = tfc.Scheme(tfc.WeightScheme(4, per_channel=per_channel))
    found = []
    for data in (images, images[::-1]):
        quantized = tfc.quantize(keras.Model(inputs, x), scheme, calibration_data=images)
        statistics = [v for v in quantized.non_trainable_variables if "moving" in v.name]
        before = [v.numpy() for v in statistics]
        tfc.reestimate_batch_norm(quantized, data)
        found.append([v.numpy() for v in statistics])
        for variable, value in zip(statistics, before, strict=True):
            # Another σ would give a kernel of one scale other codes.
            stays = not per_channel and "variance" in variable.name
            assert np.array_equal(variable.numpy(), value) == stays
    for first, second in zip(*found, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
