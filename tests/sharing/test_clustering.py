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
from tfcompress.sharing.kmeans import nearest
from tfcompress.sharing.reading import nearest_centroids, read_codebook


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
        transform.reassigns.assign(1.0)
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
        # 144 weights to a channel: in a codebook of as many nothing would be shared.
        ({"num_clusters": {"conv2": 144}, "scope": "channel"}, "no kernel"),
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


def test_a_second_codebook_of_the_model_would_overwrite_the_first(trained):
    first = cluster(trained, {"conv1": 8}, scope="model")
    with pytest.raises(ValueError, match="conv1"):
        cluster(first, {"conv2": 8}, scope="model")
    both = cluster(first, {"conv2": 4})
    for name, size in (("conv1", 8), ("conv2", 4)):
        assert np.unique(kernels(strip(both))[name]).size == size


@pytest.mark.parametrize("init", ["kmeans++", "linear", "optimal"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(init, value):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(5, name="broken")])
    model.layers[0].kernel.assign(np.full((4, 5), value))
    with pytest.raises(ValueError, match=r"finite weights. Received: 20 of 20.*'broken'"):
        cluster(model, 4, init=init)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_half_precision(policy):
    dense = layers.Dense(6, name="dense", dtype=policy)
    model = keras.Sequential([keras.Input((8,)), dense])
    # With a zero in it, which a mask keeps.
    dense.kernel.assign(np.linspace(-1.0, 1.0, 49)[1:].reshape(8, 6))
    model = cluster(model, 4)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = np.ones((8, 8), np.float32), np.ones((8, 6), np.float32)
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[Clustering(2)])
    assert model.evaluate(x, y, verbose=0) < before
    kernel = strip(model).layers[-1].kernel
    assert kernel.dtype == ("bfloat16" if policy == "bfloat16" else "float32")
    assert np.unique(np.asarray(kernel, np.float32)).size <= 4
