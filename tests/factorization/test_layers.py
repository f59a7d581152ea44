"""Single layers cut to a rank: the error is the one promised, and the factors train."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.factorization import factorize, plan_factorization


def layer_model(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


def patches(layer, x, method):
    """What the first factor's kernel is multiplied with, as a matrix, by NumPy alone."""
    if isinstance(layer, layers.Dense):
        return x.reshape(-1, x.shape[-1])
    size, strides, rates = map(list, (layer.kernel_size, layer.strides, layer.dilation_rate))
    if layer.padding == "causal":
        x = np.pad(x, [(0, 0), ((size[0] - 1) * rates[0], 0), (0, 0)])
    if method == "spatial":
        size[1] = strides[1] = rates[1] = 1
    axes = tuple(range(1, x.ndim - 1))
    spans = [(s - 1) * r + 1 for s, r in zip(size, rates, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axes)
    steps = [slice(None, None, s) for s in strides]
    inside = [slice(None, None, r) for r in rates]
    windows = windows[(slice(None), *steps, slice(None), *inside)]
    windows = np.moveaxis(windows, x.ndim - 1, -1)
    return windows.reshape(-1, np.prod(size) * x.shape[-1])


def as_matrix(kernel, method):
    if method == "spatial":
        kernel = np.moveaxis(kernel, 2, 1)
        return kernel.reshape(kernel.shape[0] * kernel.shape[1], -1)
    return kernel.reshape(-1, kernel.shape[-1])


CUT = [
    (lambda: layers.Dense(12), (10,), "svd", 3),
    (lambda: layers.Conv2D(12, 1, strides=2), (5, 5, 10), "svd", 3),
    (lambda: layers.Conv2D(10, 3, strides=2), (7, 7, 4), "svd", 4),
    (lambda: layers.Conv2D(10, (3, 2)), (6, 6, 6), "spatial", 4),
    (lambda: layers.Conv2D(10, 3, strides=(2, 1)), (7, 7, 6), "spatial", 4),
    (lambda: layers.Conv2D(10, 3, dilation_rate=(1, 2)), (7, 7, 6), "spatial", 4),
    (lambda: layers.Conv1D(12, 3, dilation_rate=2, padding="causal"), (9, 6), "svd", 3),
    (lambda: layers.Conv3D(10, 2), (4, 3, 3, 4), "svd", 3),
]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("make", "shape", "method", "rank"), CUT)
def test_a_cut_layer_errs_by_the_discarded_singular_values(make, shape, method, rank, weighted):
    random = np.random.default_rng(0)
    layer = make()
    model = layer_model(layer, shape)
    x = random.normal(size=(40, *shape)) * np.exp(random.normal(size=shape[-1]))
    x = x.astype(np.float32)
    arguments = {"ranks": rank, "methods": (method,), "data": x if weighted else None}
    small = factorize(model, **arguments)
    kernel = layer.kernel.numpy().astype(np.float64)
    whole = as_matrix(kernel, method)
    a, b = (one.kernel.numpy().astype(np.float64) for one in small.layers if one.weights)
    a, b = a.reshape(-1, rank), np.moveaxis(b, -2, 0).reshape(rank, -1)
    cut = a @ b
    seen = patches(layer, x.astype(np.float64), method) if weighted else np.eye(len(whole))
    squares = np.linalg.svd(seen @ whole, compute_uv=False) ** 2
    discarded = squares[rank:].sum() / squares.sum()
    assert 0.01 < discarded < 0.99
    error = np.sum((seen @ (whole - cut)) ** 2) / np.sum((seen @ whole) ** 2)
    assert error == pytest.approx(discarded, rel=1e-5)
    (form,) = plan_factorization(model, **arguments).forms.values()
    assert form.error == pytest.approx(discarded, rel=1e-5)
    # And the two layers compute with the product of their kernels.
    before = np.asarray(model(x[:2]))
    if method == "spatial":
        height, width, inputs, outputs = kernel.shape
        cut = np.moveaxis(cut.reshape(height, inputs, width, outputs), 2, 1)
    layer.kernel.assign(cut.reshape(kernel.shape))
    np.testing.assert_allclose(small(x[:2]), model(x[:2]), atol=1e-5 * np.abs(before).max())


def test_an_initializer_for_the_whole_kernel_is_no_obstacle():
    constant = keras.initializers.Constant(np.random.default_rng(0).normal(size=(3, 3, 6, 16)))
    conv = layers.Conv2D(16, 3, kernel_initializer=constant, name="conv")
    for rank in (4, (3, 4)):
        small = factorize(layer_model(conv, (6, 6, 6)), ranks=rank)
        assert small.count_params() < conv.count_params()


def test_a_kernel_of_zeros_is_left_alone():
    layer = layers.Dense(8, kernel_initializer="zeros", name="dense")
    model = layer_model(layer, (8,))
    for arguments in ({"energy": 0.5}, {"ranks": 2}, {"ranks": {"dense": 2}}):
        plan = plan_factorization(model, **arguments)
        assert not plan.forms
        assert "zeros" in plan.left_alone["dense"]
    assert len(factorize(model, ranks=2).layers) == len(model.layers)


def test_directions_without_a_singular_value_still_train():
    random = np.random.default_rng(0)
    layer = layers.Dense(16)
    model = layer_model(layer, (16,))
    layer.kernel.assign(np.outer(random.normal(size=16), random.normal(size=16)))
    small = factorize(model, ranks=4)
    x, y = random.normal(size=(2, 32, 16)).astype(np.float32)
    np.testing.assert_allclose(small(x), model(x), atol=1e-4)
    a, _ = (one.kernel.numpy() for one in small.layers if one.weights)
    np.testing.assert_allclose(a.T @ a, np.sum(a[:, 0] ** 2) * np.eye(4), atol=1e-4)
    small.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    for _ in range(3):
        small.train_on_batch(x, y)
    values = np.linalg.svd(np.linalg.multi_dot([k.numpy() for k in kernels(small)]))[1]
    assert values[3] > 1e-3


def kernels(model):
    return [layer.kernel for layer in model.layers if layer.weights]


def test_mobilenet_at_half_its_macs_runs_and_trains():
    net = keras.applications.MobileNet(
        input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=4, dropout=0.0
    )
    plan = plan_factorization(net, target_macs=0.5)
    half = factorize(net, target_macs=0.5)
    assert plan.total_macs[1] <= 0.5 * plan.total_macs[0]
    x = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype(np.float32)
    assert half(x).shape == (4, 4)
    half.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    before = [np.array(kernel) for kernel in kernels_of_pairs(half)]
    assert np.isfinite(half.train_on_batch(x, np.arange(4)))
    after = [np.array(kernel) for kernel in kernels_of_pairs(half)]
    assert all(np.any(old != new) for old, new in zip(before, after, strict=True))


def kernels_of_pairs(model):
    """Both factors of every layer that was cut."""
    names = {layer.name for layer in model.layers}
    return [
        layer.kernel
        for layer in model.layers
        if layer.name.endswith("_in") or f"{layer.name}_in" in names
    ]
