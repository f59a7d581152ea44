"""`cluster`: returns a copy of a Keras model whose kernels are read through codebooks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.compressed import compress, compressed_class, is_compressed
from tfcompress.model.graph import Graph
from tfcompress.model.keras_features import check_plain_kernels
from tfcompress.model.kernels import (
    Kernel,
    compressible_kernels,
    layer_kernels,
)
from tfcompress.model.lookup import check_keys, look_up
from tfcompress.model.paths import graph_paths
from tfcompress.model.rewrite import rebuild_like, rename_duplicates
from tfcompress.model.subclassed import functional_for
from tfcompress.model.transforms import KeepMask, WeightCall
from tfcompress.sharing.codebook import Cluster, check_clusters, check_scope
from tfcompress.sharing.kmeans import check_init, fit_centroids


def cluster(
    model: keras.Model,
    num_clusters: int | Mapping[Any, int | None] = 16,
    *,
    scope: str = "layer",
    init: str = "kmeans++",
    preserve_sparsity: bool = True,
    seed: int = 0,
) -> keras.Model:
    """Returns a copy of `model` whose kernels take at most k values each, and can be trained on.

    A forward pass reads every weight as the centroid it is assigned to. Training moves the
    centroids by the summed gradient of their weights, and the latent weights, which decide the
    assignments, by their own (Han et al. 2016, "Deep Compression", section 3). Assignments are
    refreshed by `callbacks.Clustering`; without it they stay, as in the paper. `clustering_report`
    tells what was clustered and what was left alone.

    It composes with `quantize`, in either order. In int8 a codebook of scope `"layer"` or
    `"model"` gets one weight scale, so that its k values stay at most k codes (2k − 1 where a
    batch norm has negative γ, which turns the signs of its channels).

    Args:
        model: A built Sequential or Functional model; it is left untouched.
        num_clusters: k, in [2, 65536]; or a mapping from layer name, regular expression, class
            or name of a class to k, where layers that no key matches, or that map to `None`, are
            left alone.
        scope: One codebook per `"layer"` (that is, per kernel), per output `"channel"`, or for the
            whole `"model"`. A kernel of no more than k weights to a codebook is left alone.
        init: `"kmeans++"`, `"linear"` or `"optimal"`; see `kmeans.fit_centroids`.
        preserve_sparsity: Keep exact zeros at zero, through training; one of the k values is then
            zero. With `False` zeros are clustered like other weights.
        seed: Of `"kmeans++"`.

    Returns:
        An uncompiled model of the same inputs, outputs and layer names.

    Raises:
        TypeError: Not a Keras model.
        ValueError: A subclassed or unbuilt model, an argument out of range, a key that matches no
            layer, a layer that is clustered already or that Keras has quantized or extended by
            LoRA, a second codebook of scope `"model"`, weights
            that are not finite, or no layer to cluster.

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> clustered = tfc.cluster(model, 16)
        >>> clustered.compile("sgd", "mse")    # fit trains the centroids
        >>> np.unique(tfc.strip(clustered).layers[-1].kernel).size
        16
    """
    check_scope(scope)
    check_init(init)
    _check_numbers(num_clusters)
    model = functional_for(model)
    check_plain_kernels(model)
    graph = Graph.from_model(model)
    paths = graph_paths(graph, rename_duplicates(graph))
    layers = {
        op: path
        for op, path in paths.items()
        if isinstance(op, keras.Layer) and op.built and layer_kernels(op)
    }
    if isinstance(num_clusters, Mapping):
        check_keys(num_clusters, layers.items(), "num_clusters")
        _check_agreement(scope, num_clusters)
    if scope == "model":
        _check_first(layers)
    replacements = {}
    clustered: list[tuple[keras.Layer, dict[str, np.ndarray]]] = []
    for layer, path in layers.items():
        k: Any = num_clusters
        if isinstance(num_clusters, Mapping):
            k = look_up(num_clusters, layer, path)
        if k is None or compressed_class(layer) is None:
            continue
        # A codebook of as many entries as it has weights shares nothing.
        chosen = [n for n in layer_kernels(layer) if _weights_per_codebook(n, scope) > k]
        values = {n.spec.name: _forward_value(n) for n in chosen}
        if not values:
            continue
        transforms = _transforms(layer, values, k, scope, preserve_sparsity, len(clustered))
        replacements[layer] = compress(layer, transforms)
        clustered.append((replacements[layer], values))
    if not clustered:
        raise ValueError(
            "Expected a model with kernels of more weights than clusters. Received: "
            f"{model.name!r} with num_clusters={num_clusters!r}, where no kernel is left."
        )
    _warn_of_inner_zeros(model, layers)
    result = rebuild_like(model, graph, replacements)
    _start(clustered, scope, init, seed)
    return result


def _warn_of_inner_zeros(model: keras.Model, layers: Mapping[Any, str]) -> None:
    """Warns of pruned kernels of layers inside other layers, which are not clustered."""
    known = {id(kernel.variable) for layer in layers for kernel in layer_kernels(layer)}
    zeros = [
        kernel.name
        for kernel in compressible_kernels(model)
        if id(kernel.variable) not in known and np.mean(np.asarray(kernel.variable) == 0) >= 0.1
    ]
    if zeros:
        warnings.warn(
            f"Layers inside other layers are not clustered: {', '.join(zeros)}. Their pruned "
            "zeros are lost in further training. Quantize the model first, which takes the outer "
            "layer apart, then cluster it.",
            stacklevel=3,
        )


def _transforms(layer, values, k, scope, preserve_sparsity, index):
    """`{variable name: new transforms}`; numbered, because codebooks find each other by name."""
    chains = {}
    masked = layer.transformed.of_type(KeepMask) if is_compressed(layer) else {}
    if is_compressed(layer) and layer.transformed.of_type(Cluster):
        raise ValueError(
            f"Expected layers that are not clustered. Received: {layer.name!r}, which is. Call "
            "tfcompress.strip first, or choose layers with a mapping as num_clusters."
        )
    for name, value in values.items():
        options = {"scope": scope, "preserve_sparsity": preserve_sparsity}
        chains[name] = [Cluster(k, **options, name=f"{name}_clusters_{index:04d}")]
        if preserve_sparsity and name not in masked and not np.all(value):
            chains[name].append(KeepMask(name=f"{name}_keep_{index:04d}"))
    return chains


def _start(clustered: list, scope: str, init: str, seed: int) -> None:
    """Sets masks, first centroids and first assignments."""
    found = []
    for layer, values in clustered:
        for name, transform in layer.transformed.of_type(Cluster).items():
            found.append((transform, values[name]))
            mask = layer.transformed.of_type(KeepMask).get(name)
            if mask is not None and transform.preserve_sparsity:
                mask.mask.assign(mask.mask.numpy() * (values[name] != 0))
    if scope == "model":
        _check_joined([transform for transform, _ in found])
        together = np.concatenate([value.ravel() for _, value in found])
        _fit(found[0][0], together.reshape(1, -1), init, seed)
    else:
        for transform, value in found:
            _fit(transform, transform.grouped(value), init, seed)
    for transform, value in found:
        transform.assign(value, reseed=False)


def _fit(transform: Cluster, grouped: np.ndarray, init: str, seed: int) -> None:
    """Fits one codebook per row; the zeros that are preserved get a centroid of their own."""
    k, centroids = transform.num_clusters, []
    has_zeros = transform.preserve_sparsity and not np.all(grouped)
    for row in grouped:
        nonzero = row[row != 0] if has_zeros else row
        if nonzero.size == 0:
            centroids.append(np.zeros(k))
        elif has_zeros:
            centroids.append(np.append(fit_centroids(nonzero, k - 1, init, seed), 0.0))
        else:
            centroids.append(fit_centroids(nonzero, k, init, seed))
    transform.set_codebook(np.stack(centroids))
    if has_zeros:
        transform.pin_zero()


def _weights_per_codebook(kernel: Kernel, scope: str) -> int:
    """How many weights of one kernel read the same codebook."""
    shape = kernel.variable.shape
    outputs = kernel.spec.output_axes if scope == "channel" else ()
    return math.prod(shape) // math.prod(shape[axis] for axis in outputs)


def _forward_value(kernel: Kernel) -> np.ndarray:
    """The latent kernel after its mask, before the transforms that round it."""
    value = np.asarray(kernel.variable, np.float32)
    if is_compressed(kernel.layer):
        mask = kernel.layer.transformed.of_type(KeepMask).get(kernel.spec.name)
        value = value if mask is None else value * mask.mask.numpy()
    if not np.isfinite(value).all():
        raise ValueError(
            f"Expected finite weights. Received: {np.sum(~np.isfinite(value))} of {value.size} "
            f"that are not in {kernel.name!r}. Train the model again with a lower learning rate, "
            "or leave the layer out with a mapping as num_clusters."
        )
    return value


def _check_numbers(num_clusters: Any) -> None:
    numbers = num_clusters.values() if isinstance(num_clusters, Mapping) else [num_clusters]
    for number in numbers:
        if number is not None or not isinstance(num_clusters, Mapping):
            check_clusters(number)


def _check_agreement(scope: str, num_clusters: Mapping) -> None:
    if scope == "model" and len({k for k in num_clusters.values() if k is not None}) > 1:
        raise ValueError(
            "Expected one number of clusters for the one codebook of scope='model'. Received: "
            f"{dict(num_clusters)}."
        )


def _check_first(layers: Mapping[keras.Layer, str]) -> None:
    compressed = [layer for layer in layers if is_compressed(layer)]
    found = [
        layer.name
        for layer in compressed
        if any(t.scope == "model" for t in layer.transformed.of_type(Cluster).values())
    ]
    if found:
        raise ValueError(
            "Expected a model without a codebook of scope='model': a second one would join it and "
            f"overwrite it. Received: one that {found} read. Choose all layers of the codebook in "
            "one call, or use scope='layer' for the others."
        )


def _check_joined(transforms: list[Cluster]) -> None:
    leaders = {id(transform.leader()) for transform in transforms}
    if len(leaders) > 1:
        raise ValueError(
            "Expected a model whose clustered layers are connected, for scope='model'. Received: "
            f"{len(leaders)} parts that no clustered layer joins. Use scope='layer', or leave the "
            "smaller parts out with a mapping as num_clusters."
        )


# --- clustered kernels-----------------------------------------------------------------------------


def clustered_kernels(model: keras.Model) -> list[tuple[Kernel, Cluster]]:
    """Every clustered kernel of `model` (of a `Distiller`: of its student) with its transform."""
    found = []
    for kernel in compressible_kernels(model):
        if is_compressed(kernel.layer):
            transform = kernel.layer.transformed.of_type(Cluster).get(kernel.spec.name)
            if transform is not None:
                found.append((kernel, transform))
    return found


def latent_value(kernel: Kernel, transform: Cluster) -> np.ndarray:
    """The input of a kernel's `Cluster`: the latent kernel after the transforms before it."""
    value = tf.cast(kernel.variable.value, tf.float32)
    for link in kernel.layer.transformed.chains[kernel.spec.name]:
        if link is transform:
            break
        value = link.apply(value, WeightCall(training=False))
    return np.asarray(value)
