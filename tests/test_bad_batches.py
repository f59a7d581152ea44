"""One batch with NaN or infinite values spoils no range, statistic, mask, score or codebook."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.model.finite import NotFinite, check_finite
from tfcompress.pruning.masks.constraints import LatentConstraint
from tfcompress.pruning.structure.masking import ChannelPruner
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.sharing.callbacks import refresh_assignments

X = np.random.default_rng(0).uniform(-1, 1, (32, 6, 6, 2)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 32)


def net():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Dense(8, name="dense")(layers.GlobalAveragePooling2D()(x))
    x = layers.BatchNormalization(name="flat_norm")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def moving_state(model):
    """Path → value: ranges of quantizers, and moving statistics of batch norms."""
    quantizers = [q for q in model._flatten_layers() if isinstance(q, FakeQuantize)]
    ranges = [
        v for q in quantizers if q.fixed_range is None for v in (q.statistics, *q.state.values())
    ]
    statistics = [v for v in model.non_trainable_variables if "moving_" in v.path]
    assert len(quantizers) > 3
    assert len(statistics) == 4
    return {v.path: v.numpy() for v in (*ranges, *statistics)}


def test_ranges_and_statistics_keep_their_last_values():
    model = tfc.quantize(net(), calibration_data=X)
    broken = X.copy()
    broken[3, 2, 2, 1] = np.nan
    model(X[:8], training=True)
    before = moving_state(model)
    model(broken, training=True)
    # Behind the first convolution the sample is in every channel.
    for path, value in moving_state(model).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    model(X[8:16], training=True)
    after = moving_state(model)
    assert all(np.isfinite(value).all() for value in after.values())
    assert all(np.any(after[path] != before[path]) for path in before if "moving_" in path)
    assert any(np.any(after[path] != before[path]) for path in before if "statistics" in path)


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_an_infinite_value_is_clipped_at_the_input_and_moves_no_range_there(bad):
    model = tfc.quantize(net(), calibration_data=X)
    before = moving_state(model)
    broken = X.copy()
    broken[3, 2, 2, 1] = bad
    model(broken, training=True)
    after = moving_state(model)
    first = next(q for q in model._flatten_layers() if isinstance(q, FakeQuantize))
    assert first.rounds_input
    for variable in (first.statistics, *first.state.values()):
        np.testing.assert_array_equal(after[variable.path], before[variable.path])
    assert all(np.isfinite(value).all() for value in after.values())


def test_a_batch_is_named_by_step_and_weights():
    model = tfc.quantize(net(), calibration_data=X)
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(True))
    broken = X.copy()
    broken[8:16] = np.nan
    schedule = tfc.callbacks.QuantizationSchedule()
    message = (
        r"Step 2 \(batch 1 of the epoch\): the loss is nan. Ranges .* stay as they were. "
        r"Weights that are not finite now: '.*conv.*kernel.*Load an earlier checkpoint"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        model.fit(broken, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[schedule])
    assert len([w for w in caught if "the loss is" in str(w.message)]) == 1


def test_trained_ranges_steps_and_centroids_keep_their_values():
    def scheme(activations):
        return tfc.Scheme(
            tfc.WeightScheme(quantizer=tfc.LSQ()), tfc.ActivationScheme(quantizer=activations)
        )

    config = tfc.QuantizationConfig(scheme(tfc.LSQPlus()), by_type={"ReLU": scheme(tfc.PACT())})
    clustered = tfc.cluster(net(), {"dense": 4, "conv": 4})
    model = tfc.quantize(clustered, config, calibration_data=X)
    names = ("centroids", "step", "alpha", "offset")
    trained = [v for v in model.trainable_variables if v.name in names]
    assert {v.name for v in trained} == set(names)
    model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(True))
    broken = X.copy()
    broken[8:16] = np.nan
    values = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: values.append([v.numpy() for v in trained])
    )
    said = r"Step 2 .*Codebooks and assignments stay as they were"
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    options["callbacks"] = [tfc.callbacks.Clustering(frequency=10, begin_step=10), note]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(broken[:16], Y[:16], **options)
    assert any(re.match(said, str(w.message)) for w in caught)
    before, after = values
    for variable, old, new in zip(trained, before, after, strict=True):
        # The penalty of PACT moves it.
        np.testing.assert_allclose(old, new, rtol=1e-4, err_msg=variable.path)


def test_masks_wait_for_gradients_that_are_finite():
    model = net()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    broken = X.copy()
    broken[0] = np.nan
    pruner = tfc.Pruner(
        model, tfc.ConstantSparsity(0.5, frequency=1), criterion="taylor", layers="dense"
    )
    pruner.update(0, batch=(X, Y))
    before = [mask.numpy() for mask in pruner.masks]
    pruner.kernels[0].variable.assign(np.arange(1, 65).reshape(8, 8) / 64)
    with pytest.warns(UserWarning, match=r"Step 1: .*gradients.*'dense.*Masks stay as they were"):
        assert not pruner.update(1, batch=(broken, Y))
    for mask, value in zip(pruner.masks, before, strict=True):
        np.testing.assert_array_equal(mask.numpy(), value)
    assert pruner.update(2, batch=(X, Y))
    assert pruner.overall_sparsity() == 0.5
    # The kernel itself.
    pruner.kernels[0].variable.assign(np.full((8, 8), np.nan))
    with pytest.warns(UserWarning, match=r"Step 3: .*weights.*'dense"):
        pruner.update(3, batch=(X, Y))
    # Removed weights are zero all the same.
    assert np.sum(pruner.kernels[0].variable.numpy() == 0) == 32
    pruner.detach()


def test_remembered_weights_and_accumulated_scores_stay_finite():
    mask, latent, scores = (
        keras.Variable(value, dtype=None if value.dtype == bool else "float32", trainable=False)
        for value in (np.array([True, False]), np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    )
    constraint = LatentConstraint(
        mask, latent, True, scores, lambda kernel, gradient: -kernel * gradient
    )
    constraint.apply(tf.constant([np.nan, np.nan], tf.float32))
    np.testing.assert_array_equal(scores.numpy(), [3.0, 4.0])
    assert latent.numpy()[1] == 2.0


def test_codebooks_wait_for_weights_that_are_finite():
    model = tfc.cluster(net(), {"dense": 4, "conv": 4})
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    before = {v.path: v.numpy() for v in model.variables}
    (kernel,) = (v for v in model.get_layer("dense").weights if v.name == "kernel")
    good = kernel.numpy()
    kernel.assign(np.where(np.arange(64).reshape(8, 8) == 5, np.nan, good))
    with pytest.warns(UserWarning, match=r"Step 0: .*dense.*codebooks and assignments stay"):
        refresh_assignments(model)
    for variable in model.get_layer("dense").weights:
        if variable is not kernel:
            np.testing.assert_array_equal(variable.numpy(), before[variable.path])
    kernel.assign(good)
    assert refresh_assignments(model) == 0.0


def test_channel_masks_wait_for_scores_that_are_finite():
    model = net()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    broken = [(X, Y)]
    schedule = tfc.ConstantSparsity(0.3, frequency=1)
    pruner = ChannelPruner(model, schedule, criterion="taylor", data=broken, round_to=1)
    bad = X.copy()
    bad[0] = np.nan
    broken[0] = (bad, Y)
    with pytest.warns(UserWarning, match=r"Step 0: .*gradients.*Channel masks stay"):
        assert not pruner.update(0)
    assert pruner.left() == 1.0
    broken[0] = (X, Y)
    assert pruner.update(1)
    assert pruner.left() < 0.8
    pruner.finish()


def test_names_of_what_is_not_finite():
    check_finite([np.ones(2)], ["a"], "weights")
    arrays = [np.array([np.inf])] * 7
    with pytest.raises(NotFinite, match=r"finite weights. Received: .*'0', .*'4' and 2 more"):
        check_finite(arrays, list("0123456"), "weights")
