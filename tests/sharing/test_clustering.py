"""Clustered models: what they compute, how they train, what they keep."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from keras import layers

from tfcompress.distillation import Distiller, LogitsDistillation
from tfcompress.model.strip import strip
from tfcompress.pruning import ConstantSparsity, PolynomialDecay, Pruning
from tfcompress.quantization.quantize import quantize
from tfcompress.sharing import Cluster, Clustering, cluster, clustering_report, refresh_assignments
from tfcompress.sharing.clustering import clustered_kernels
from tfcompress.sharing.codebook import nearest_centroids, read_codebook
from tfcompress.sharing.kmeans import nearest


def kernels(model):
    return {layer.name: layer.get_weights()[0] for layer in model.layers if layer.weights}


def test_gradient_of_a_centroid_is_the_sum_over_its_weights():
    random = np.random.default_rng(0)
    value = random.normal(size=(6, 5)).astype(np.float32)
    value[random.random(value.shape) < 0.3] = 0.0
    book = tf.constant([0.5, -1.0, 2.0])
    index = random.integers(0, 3, value.shape).astype(np.int32)
    weights = random.normal(size=value.shape).astype(np.float32)
    value = tf.constant(value)
    with tf.GradientTape() as tape:
        tape.watch((value, book))
        read = read_codebook(value, book, index, True)
        loss = tf.reduce_sum(read * weights)
    expected = np.where(value == 0, 0.0, book.numpy()[index])
    np.testing.assert_array_equal(read, expected)
    latent, summed = tape.gradient(loss, (value, book))
    np.testing.assert_array_equal(latent, weights)
    kept = np.where(value == 0, 0.0, weights)
    np.testing.assert_allclose(summed, [kept[index == j].sum() for j in range(3)], rtol=1e-5)


@pytest.mark.parametrize("scope", ["layer", "channel", "model"])
def test_kernels_take_k_values_and_the_rest_stays(trained, digits, scope, accuracy):
    before = trained.get_weights()
    model = cluster(trained, 8, scope=scope, init="optimal")
    stripped = strip(model)
    found = kernels(stripped)
    latent = kernels(trained)
    for name in ("conv1", "conv2", "logits"):
        channels = found[name].reshape(-1, found[name].shape[-1]).T
        if scope == "channel":
            assert max(np.unique(c).size for c in channels) == 8
        else:
            assert np.unique(found[name]).size <= 8
    if scope == "layer":
        assert {np.unique(found[n]).size for n in ("conv1", "conv2", "logits")} == {8}
        for name in ("conv1", "conv2"):
            values = np.unique(found[name])
            np.testing.assert_array_equal(found[name], values[nearest(latent[name], values)])
    if scope == "model":
        together = np.concatenate([found[n].ravel() for n in ("conv1", "conv2", "logits")])
        assert np.unique(together).size == 8
    np.testing.assert_array_equal(found["norm"], latent["norm"])
    for old, new in zip(before, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not any("compress" in type(layer).__name__.lower() for layer in stripped.layers)
    x = digits[1][0][:50]
    np.testing.assert_allclose(
        model.predict(x, verbose=0), stripped.predict(x, verbose=0), atol=1e-5
    )
    assert accuracy(model, digits[1]) > 0.85
    assert str(clustering_report(model)).count(scope) >= 3


def test_one_codebook_stays_one_through_clone_quantize_and_file(trained, digits, tmp_path):
    (x, y), _ = digits
    model = cluster(trained, 8, scope="model")
    model.save(tmp_path / "m.keras")
    copies = [
        model,
        keras.models.clone_model(model),
        keras.models.load_model(tmp_path / "m.keras"),
        quantize(model, calibration_data=x[:64]),
    ]
    for copy in copies:
        transforms = [transform for _, transform in clustered_kernels(copy)]
        assert len({id(t.leader()) for t in transforms}) == 1
        assert len({t.leader().name for t in transforms}) == 1
    loaded = copies[2]
    np.testing.assert_array_equal(
        model.predict(x[:20], verbose=0), loaded.predict(x[:20], verbose=0)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loaded.compile(keras.optimizers.Adam(1e-3), loss)
    loaded.fit(x[:256], y[:256], epochs=1, verbose=0, callbacks=[Clustering(2)])
    plain = kernels(strip(loaded))
    assert np.unique(np.concatenate([plain[n].ravel() for n in ("conv1", "logits")])).size <= 8


def test_fit_moves_centroids_always_and_assignments_on_schedule(trained, digits, compiled):
    (x, y), _ = digits
    model = compiled(cluster(trained, 8))
    transforms = [transform for _, transform in clustered_kernels(model)]

    def state():
        return [(t.centroids.numpy(), t.assignments.numpy()) for t in transforms]

    start = state()
    model.fit(x, y, batch_size=128, epochs=1, verbose=0)
    plain = state()
    for (c0, a0), (c1, a1) in zip(start, plain, strict=True):
        assert np.all(c0 != c1)
        np.testing.assert_array_equal(a0, a1)
    # 12 steps an epoch: refreshed before step 12 + 3, which reads what is nearest by then; and kept
    # as they are after it.
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(state()[1][1])
    )
    callback = Clustering(frequency=50, begin_step=15, end_step=16)
    model.fit(x, y, batch_size=128, epochs=1, verbose=0, callbacks=[callback, watch])
    changes = [i for i in range(1, 12) if not np.array_equal(seen[i], seen[i - 1])]
    assert changes == [3, 4]
    assert refresh_assignments(model) >= 0.0


@pytest.mark.parametrize("scope", ["layer", "channel", "model"])
def test_weights_are_read_where_they_are_while_assignments_move(trained, scope):
    model = cluster(trained, 6, scope=scope)
    found = clustered_kernels(model)
    for kernel, _ in found:
        value = kernel.variable.numpy()
        noise = np.random.default_rng(0).normal(size=value.shape) * value.std()
        # A pruned weight stays zero, and no other one is read as the zero that is kept for it.
        kernel.variable.assign(np.where(noise > 1.5 * value.std(), 0.0, value + noise))

    def read():
        return [np.asarray(k.layer.effective_weights()[k.spec.name]) for k, _ in found]

    before = read()
    refresh_assignments(model, reseed=False)
    refreshed = read()
    assert not any(np.array_equal(a, b) for a, b in zip(before, refreshed, strict=True))
    for _, transform in found:
        transform.assignments.assign(tf.zeros_like(transform.assignments))
        transform.moving.assign(1.0)
    for kept, moving in zip(refreshed, read(), strict=True):
        np.testing.assert_array_equal(kept, moving)


@given(
    st.integers(1, 4).flatmap(
        lambda groups: st.tuples(
            arrays.arrays(np.float32, (groups, 5), elements=st.floats(-3, 3, width=16)),
            arrays.arrays(np.float32, (groups, 30), elements=st.floats(-4, 4, width=16)),
        )
    ),
    st.integers(-1, 4),
)
@settings(max_examples=30, deadline=None)
def test_nearest_in_the_graph_is_nearest(both, pinned):
    codebook, values = both
    usable = np.ones(codebook.shape, bool)
    usable[:, pinned : pinned + 1] = False
    index = nearest_centroids(tf.constant(values), tf.constant(codebook), tf.constant(usable))
    distance = np.where(usable[:, None], np.abs(values[:, :, None] - codebook[:, None]), np.inf)
    chosen = np.take_along_axis(distance, index.numpy()[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(chosen, distance.min(2), atol=1e-6)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_no_refresh_is_missed_between_executions(stride):
    callback = Clustering(frequency=5, begin_step=2, end_step=30)
    visited = list(range(0, 60, stride))
    due = [
        step
        for last, step in zip([None, *visited], visited, strict=False)
        if callback.is_due(step, last)
    ]
    # The first step of an execution at or behind 2, 7, 12, 17, 22 and 27.
    assert due == sorted({-(-step // stride) * stride for step in range(2, 30, 5)})


def test_zeros_of_plain_pruning_count_among_the_values(trained, digits, compiled):
    (x, y), _ = digits
    model = compiled(cluster(trained, 4))
    pruning = Pruning(ConstantSparsity(0.5, 0, 0), verbose=0)
    model.fit(x, y, batch_size=128, epochs=1, verbose=0, callbacks=[pruning])
    for kernel, transform in clustered_kernels(model):
        value = np.asarray(kernel.layer.effective_weights()[kernel.spec.name])
        assert (value == 0).mean() >= 0.49
        assert np.unique(value).size <= transform.num_clusters


def test_zeros_of_one_kernel_take_no_centroid_from_others(trained):
    model = cluster(trained, 8, scope="model")
    found = clustered_kernels(model)
    last, _ = found[-1]
    last.variable.assign(np.where(np.arange(last.variable.shape[1]) < 3, 0.0, last.variable))
    refresh_assignments(model, reseed=False)
    for kernel, _ in found:
        value = np.asarray(kernel.layer.effective_weights()[kernel.spec.name])
        np.testing.assert_array_equal(value == 0, kernel.variable.numpy() == 0)


def test_prune_cluster_quantize_and_distil_in_one_fit(trained, digits, accuracy):
    (x, y), test = digits
    student = cluster(quantize(trained, calibration_data=x[:128]), 16)
    distiller = Distiller(trained, student, LogitsDistillation(temperature=2.0))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(2e-3), loss)
    callbacks = [
        Pruning(PolynomialDecay(0.0, 0.5, begin_step=0, end_step=20, frequency=5), verbose=0),
        Clustering(frequency=5, end_step=30),
    ]
    distiller.fit(x, y, batch_size=64, epochs=2, verbose=0, callbacks=callbacks)
    for kernel, transform in clustered_kernels(student):
        latent = kernel.variable.numpy()
        read = np.asarray(kernel.layer.effective_weights()[kernel.spec.name])
        codes = np.asarray(transform.apply(kernel.variable.value, {}))
        assert np.mean(latent == 0) == pytest.approx(0.5, abs=0.01)
        # Behind all links of the chain: the zeros of the latent kernel, and 16 values with zero.
        assert np.all(read[latent == 0] == 0)
        assert 12 <= np.unique(codes).size <= 16
        assert np.all(codes[latent != 0] != 0)
    assert accuracy(student, test) > 0.9


def test_zeros_found_stay_through_a_plain_fit(trained, digits, compiled):
    (x, y), _ = digits
    pruned = keras.models.clone_model(trained)
    pruned.set_weights(trained.get_weights())
    for name in ("conv1", "conv2", "logits"):
        kernel = pruned.get_layer(name).kernel
        value = kernel.numpy()
        kernel.assign(np.where(np.abs(value) < np.quantile(np.abs(value), 0.7), 0.0, value))
    model = compiled(cluster(pruned, 6))
    model.fit(x, y, batch_size=128, epochs=1, verbose=0, callbacks=[Clustering(3)])
    stripped = kernels(strip(model))
    for name in ("conv1", "conv2", "logits"):
        np.testing.assert_array_equal(stripped[name] == 0, kernels(pruned)[name] == 0)
        assert np.unique(stripped[name]).size == 6
    free = cluster(pruned, 6, preserve_sparsity=False)
    assert clustered_kernels(free)[0][1].free.numpy().all()


def test_choosing_layers_and_naming_what_is_left_alone():
    class Own(layers.Dense):
        pass

    inputs = keras.Input((6, 4))
    x = layers.SeparableConv1D(5, 3, name="separable")(inputs)
    x = layers.Bidirectional(layers.LSTM(3), name="both")(x)
    x = layers.Dense(9, name="wide")(x)
    x = Own(9, name="own")(x)
    model = keras.Model(inputs, layers.Dense(2, name="narrow")(x))
    clustered = cluster(model, {"wide": 4, layers.SeparableConv1D: 3, "narrow": None})
    report = clustering_report(clustered)
    assert set(report.kernels) == {
        "wide",
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
    }
    assert [k[1] for k in report.kernels.values()] == [3, 3, 4]
    assert {"narrow", "own"} < set(report.left_alone)
    assert "Own" in report.left_alone["own"]
    assert len(report.left_alone) == 6
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    np.testing.assert_allclose(clustered(x), strip(clustered)(x), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clusters": 1}, "num_clusters"),
        ({"num_clusters": 2.5}, "num_clusters"),
        ({"scope": "filter"}, "scope"),
        ({"init": "random"}, "init"),
        ({"num_clusters": {"conv9": 4}}, "conv1"),
        ({"num_clusters": {"conv1": 4, "conv2": 5}, "scope": "model"}, "one number"),
        ({"num_clusters": 60000}, "no kernel"),
    ],
)
def test_mistakes(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        cluster(trained, **arguments)


def test_every_argument_comes_back():
    first = Cluster(5, scope="channel", preserve_sparsity=False, name="clusters")
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(first))
    assert type(restored) is Cluster
    assert restored.get_config() == first.get_config()
    assert (restored.num_clusters, restored.scope, restored.preserve_sparsity) == (
        5,
        "channel",
        False,
    )


def test_mistakes_in_training(trained):
    with pytest.raises(ValueError, match="not clustered"):
        cluster(cluster(trained, 4), 4)
    with pytest.raises(ValueError, match="cluster"):
        refresh_assignments(trained)
    with pytest.raises(ValueError, match="frequency"):
        Clustering(0)
    with pytest.raises(ValueError, match="end_step"):
        Clustering(1, begin_step=5, end_step=4)
