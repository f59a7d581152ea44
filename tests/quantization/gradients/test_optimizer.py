"""`QuantizedGradients` around optimizers: what is applied, kept, saved."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc

X = np.random.default_rng(0).normal(0, 1, (64, 6)).astype(np.float32)
Y = X @ np.random.default_rng(1).normal(0, 1, (6, 2)).astype(np.float32)


def net(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(2)])
    model.compile(optimizer, "mse")
    return model


def test_what_is_applied_is_on_the_grid_and_what_is_cut_off_comes_later():
    variable = keras.Variable(np.zeros((3, 2), np.float32))
    optimizer = tfc.QuantizedGradients(keras.optimizers.SGD(1.0), 3, "nearest")
    gradient = np.array([[0.1, -1.0], [0.4, 0.2], [0.0, 0.3]], np.float32)
    optimizer.apply([tf.constant(gradient)], [variable])
    np.testing.assert_allclose(-variable.numpy(), np.round(gradient * 3) / 3, atol=1e-6)
    for _ in range(29):
        optimizer.apply([tf.constant(gradient)], [variable])
    # Thirty steps later no more than a step is owed, whatever rounding did.
    np.testing.assert_allclose(-variable.numpy(), 30 * gradient, atol=0.5)
    without = keras.Variable(np.zeros((3, 2), np.float32))
    optimizer = tfc.QuantizedGradients(keras.optimizers.SGD(1.0), 3, "nearest", False)
    for _ in range(30):
        optimizer.apply([tf.constant(gradient)], [without])
    assert without.numpy()[0, 0] == 0


def test_scales_by_channel_and_by_norm():
    gradient = np.array([[1.0, 10.0], [0.5, -4.0]], np.float32)
    channel = tfc.QuantizedGradients(keras.optimizers.SGD(), 3, "nearest", per_channel=True)
    np.testing.assert_allclose(
        channel.quantize(tf.constant(gradient)), [[1, 10], [2 / 3, -10 / 3]], rtol=1e-6
    )
    norm = tfc.QuantizedGradients(keras.optimizers.SGD(), 3, "nearest", method="qsgd")
    size = np.linalg.norm(gradient)
    np.testing.assert_allclose(
        norm.quantize(tf.constant(gradient)), np.round(gradient / size * 3) * size / 3, rtol=1e-6
    )
    both = tfc.QuantizedGradients(
        keras.optimizers.SGD(), 3, "nearest", per_channel=True, method="qsgd"
    )
    sizes = np.linalg.norm(gradient, axis=0)
    np.testing.assert_allclose(
        both.quantize(tf.constant(gradient)), np.round(gradient / sizes * 3) * sizes / 3, rtol=1e-6
    )


@pytest.mark.parametrize("method", ["uniform", "qsgd", "dorefa"])
def test_a_model_trains(method):
    model = net(tfc.QuantizedGradients(keras.optimizers.Adam(0.01), 6, method=method))
    losses = model.fit(X, Y, batch_size=8, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_options_of_the_inner_optimizer_and_loss_scales_work():
    inner = keras.optimizers.SGD(
        0.05,
        momentum=0.9,
        clipnorm=1.0,
        weight_decay=1e-4,
        use_ema=True,
        gradient_accumulation_steps=2,
    )
    for optimizer in (
        tfc.QuantizedGradients(inner),
        keras.optimizers.LossScaleOptimizer(tfc.QuantizedGradients(keras.optimizers.SGD(0.05))),
    ):
        model = net(optimizer)
        losses = model.fit(X, Y, batch_size=8, epochs=3, verbose=0).history["loss"]
        assert losses[-1] < losses[0]
        assert np.isfinite(losses).all()
        assert int(model.optimizer.iterations) in (12, 24)


def test_a_loss_scale_goes_outside():
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05))
    with pytest.raises(ValueError, match="LossScaleOptimizer\\(QuantizedGradients"):
        tfc.QuantizedGradients(scaled)


def test_an_error_is_kept_in_full_while_the_loss_scale_grows():
    """A small gradient beside a large one arrives by error feedback, whatever the scale is."""
    variable = keras.Variable(np.zeros((2,), np.float32))
    quantized = tfc.QuantizedGradients(keras.optimizers.SGD(1.0), 2, rounding="nearest")
    optimizer = keras.optimizers.LossScaleOptimizer(
        quantized, initial_scale=2.0, dynamic_growth_steps=2
    )
    optimizer.build([variable])
    for _ in range(16):
        scale = float(optimizer.dynamic_scale)
        optimizer.apply([tf.constant([1.0, 0.25]) * scale], [variable])
    assert float(optimizer.dynamic_scale) > 100
    np.testing.assert_allclose(-variable.numpy(), [16.0, 4.0], atol=0.5)


def test_a_gradient_that_overflowed_reaches_the_loss_scale_and_spoils_no_error():
    variable = keras.Variable(np.zeros((2,), np.float32))
    optimizer = keras.optimizers.LossScaleOptimizer(
        tfc.QuantizedGradients(keras.optimizers.SGD(1.0), 4), initial_scale=2.0
    )
    optimizer.apply([tf.constant([np.inf, 1.0])], [variable])
    assert float(optimizer.dynamic_scale) == 1.0
    own = tfc.QuantizedGradients(keras.optimizers.SGD(1.0), 4)
    own.apply([tf.constant([np.nan, 1.0])], [variable])
    assert all(np.isfinite(v.numpy()).all() for v in own.variables)
    assert len(own.variables) == 5


def test_saved_and_resumed_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    straight = net(tfc.QuantizedGradients(keras.optimizers.Adam(0.01), 4))
    straight.fit(X, Y, batch_size=8, epochs=4, shuffle=False, verbose=0)
    first = net(tfc.QuantizedGradients(keras.optimizers.Adam(0.01), 4))
    first.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    first.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert isinstance(again.optimizer, tfc.QuantizedGradients)
    again.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for found, wanted in zip(again.get_weights(), straight.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_sparse_gradients_of_an_embedding():
    model = keras.Sequential([keras.Input((4,), dtype="int32"), layers.Embedding(9, 3)])
    model.compile(tfc.QuantizedGradients(keras.optimizers.Adam(0.05)), "mse")
    tokens = np.arange(32).reshape(8, 4) % 9
    losses = model.fit(tokens, np.ones((8, 4, 3)), epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_learning_rate_schedules_and_callbacks_reach_the_inner_optimizer():
    model = net(tfc.QuantizedGradients(keras.optimizers.SGD(0.05)))
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model.fit(X, Y, epochs=2, callbacks=[halve], verbose=0)
    assert float(model.optimizer.inner_optimizer.learning_rate) == pytest.approx(0.0125)


def test_arguments_are_checked():
    sgd = keras.optimizers.SGD()
    for arguments in ({"num_bits": 1}, {"rounding": "up"}, {"method": "sign"}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            tfc.QuantizedGradients(sgd, **arguments)
    with pytest.raises(TypeError, match="optimizer"):
        tfc.QuantizedGradients("sgd")


def test_gradients_of_activations_are_quantized_where_the_scheme_says_so(tmp_path):
    float_model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "relu", name="a"), layers.Dense(2, name="b")]
    )
    scheme = tfc.Scheme(gradients=tfc.GradientScheme(2))
    model = tfc.quantize(
        float_model, tfc.QuantizationConfig(by_name={"a": scheme}), calibration_data=X
    )
    found = {layer.source: layer.gradients for layer in model.layers if hasattr(layer, "gradients")}
    assert [name for name, gradients in found.items() if gradients is not None] == ["a"]
    model.compile(keras.optimizers.Adam(0.01), "mse")
    losses = model.fit(X, Y, batch_size=8, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(X), model(X))
    # Every sample's gradient at the layer's output has four levels.
    quantizer = next(q for q in model.layers if getattr(q, "source", None) == "a")
    x = tf.Variable(tf.fill(X.shape, 0.01))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(quantizer(x.value(), training=True) * X)
    gradient = tape.gradient(loss, x).numpy()
    thirds = 3 * gradient / np.abs(X).max(1, keepdims=True)
    np.testing.assert_allclose(np.abs(thirds), np.where(np.abs(thirds) > 2, 3, 1), atol=1e-4)
