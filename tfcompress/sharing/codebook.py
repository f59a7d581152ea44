"""The weight transform of clustering: a kernel that is read through a codebook."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model.compressed import is_compressed
from tfcompress.model.graph import producer
from tfcompress.model.kernels import kernel_specs
from tfcompress.model.transforms import CLUSTER, WeightTransform
from tfcompress.sharing.kmeans import nearest, reseed_empty
from tfcompress.sharing.reading import nearest_centroids, read_codebook

SCOPES = ("layer", "channel", "model")


@keras.saving.register_keras_serializable(package="tfcompress")
class Cluster(WeightTransform):
    """Replaces every weight by the centroid it is assigned to.

    The centroids train; the assignments are state, which `assign` refreshes from the latent kernel.
    While `reassigns` is set, a forward pass assigns every weight to its nearest centroid anew, so
    that the loss depends on where the latent weights are. With fixed assignments all latent weights
    of a cluster would follow one gradient for many steps, and the next refresh would change the
    layer abruptly. `reassigns` belongs to a training step, not to the model: it is in no list of
    weights, is not saved and not restored.

    Where the kernel holds exact zeros and they are preserved, one centroid is pinned to zero and
    serves nothing but them, so that a pruned kernel has no more than k values, zero included.

    Args:
        num_clusters: k, from 2 on.
        scope: `"layer"`: one codebook; `"channel"`: one per output channel; `"model"`: one for all
            kernels of the model, which find each other when their layers are called.
        preserve_sparsity: Keep exact zeros.
    """

    order = CLUSTER

    def __init__(
        self,
        num_clusters: int = 16,
        *,
        scope: str = "layer",
        preserve_sparsity: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_clusters(num_clusters)
        check_scope(scope)
        self.num_clusters = num_clusters
        self.scope = scope
        self.preserve_sparsity = preserve_sparsity
        # A function, because Keras would track another layer held here as a part of this one.
        self._leader: Callable[[], Cluster] | None = None

    @property
    def one_scale(self) -> bool:
        return self.scope != "channel"

    def attach(self, layer, variable):
        spec = next(s for s in kernel_specs(layer) if s.name == variable.name)
        rank = len(variable.shape)
        self._output_axes = tuple(axis % rank for axis in spec.output_axes)
        super().attach(layer, variable)

    def build(self, shape):
        axes = self._output_axes if self.scope == "channel" else ()
        self._group_shape = tuple(n if a in axes else 1 for a, n in enumerate(shape))
        groups = math.prod(self._group_shape)

        def add(name, shape, dtype="float32", trainable=False, initializer="zeros"):
            return self.add_weight(
                name=name,
                shape=shape,
                dtype=dtype,
                initializer=initializer,
                trainable=trainable,
                autocast=False,
                aggregation="mean" if trainable else "only_first_replica",
            )

        size = (groups, self.num_clusters)
        self.centroids = add("centroids", size, trainable=True)
        # 0 for the entry that is pinned to zero.
        self.free = add("free", size, initializer="ones")
        self.assignments = add("assignments", shape, dtype="int32")
        # TensorFlow's own variable, so that Keras neither saves it nor sets it with the weights.
        with tf.init_scope():
            self.reassigns = tf.Variable(
                0.0,
                trainable=False,
                name="reassigns",
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

    # --- one codebook for the model ----------------------------------------------------------

    def link(self, layer, inputs, call_index):
        if self.scope != "model":
            return
        for other in (*layer.transformed.of_type(Cluster).values(), *_upstream(inputs)):
            if other.scope == "model":
                self._join(other)

    def leader(self) -> Cluster:
        """The transform whose codebook this one reads: itself, except in the scope `"model"`."""
        found = self
        while found._leader is not None:
            found = found._leader()
        return found

    def _join(self, other: Cluster) -> None:
        # By name, so that a copy of the model chooses the same one whatever order it is built in.
        first, second = sorted((self.leader(), other.leader()), key=lambda t: t.name)
        if first is not second:
            second._leader = lambda: first

    # --- the codebook ------------------------------------------------------------------------

    def codebook(self) -> tf.Tensor:
        """The values that the kernel may take, float32 of shape (groups, k)."""
        leader = self.leader()
        codebook = leader.centroids.value * leader.free.value
        if leader is not self:
            # Its own centroids get a gradient of zero, instead of none, which Keras warns of.
            codebook += 0.0 * self.centroids.value
        return codebook

    def axes_of(self, state, shape):
        if state is self.assignments:
            return super().axes_of(state, shape)
        # A codebook: (groups, k), with a group for each output channel in the scope `"channel"`.
        outputs = [axis for axis, size in enumerate(self._group_shape) if size > 1]
        return {0: outputs[0]} if len(outputs) == 1 else {}

    def apply(self, value, call):
        # Under a pure 16-bit policy the latent kernel is no float32 either.
        value = tf.cast(value, tf.float32)
        codebook = self._codebook_for(value)
        index = tf.cond(
            self.reassigns > 0,
            lambda: self._nearest(value, codebook),
            lambda: tf.identity(self.assignments.value),
        )
        groups = tf.range(codebook.shape[0]) * self.num_clusters
        index = index + tf.reshape(groups, self._group_shape)
        return read_codebook(value, tf.reshape(codebook, [-1]), index, self.preserve_sparsity)

    def assign_nearest(self, value: tf.Tensor) -> None:
        """Stores the assignments that a forward pass computes while `reassigns` is set.

        Args:
            value: The latent kernel behind its mask.
        """
        value = tf.convert_to_tensor(value, tf.float32)
        self.assignments.assign(self._nearest(value, self._codebook_for(value)))

    def _codebook_for(self, value: tf.Tensor) -> tf.Tensor:
        codebook = self.codebook()
        return self._with_zero(value, codebook) if self.preserve_sparsity else codebook

    def _nearest(self, value: tf.Tensor, codebook: tf.Tensor) -> tf.Tensor:
        """What `assign` would assign, but for preserved zeros, which are read as zeros anyway."""
        axes = sorted(range(value.shape.rank), key=lambda axis: self._group_shape[axis] == 1)
        grouped = tf.transpose(value, axes)
        rows = tf.reshape(grouped, [codebook.shape[0], -1])
        found = nearest_centroids(rows, codebook, self.leader().free.value > 0)
        return tf.transpose(tf.reshape(found, tf.shape(grouped)), np.argsort(axes))

    def _with_zero(self, value: tf.Tensor, codebook: tf.Tensor) -> tf.Tensor:
        """Zeros count among the k values, also before `assign` has pinned a centroid for them."""
        nearest_zero = tf.one_hot(tf.argmin(tf.abs(codebook), axis=1), self.num_clusters)
        is_new = tf.reduce_any(tf.equal(value, 0.0)) & tf.reduce_all(self.leader().free.value > 0)
        return tf.where(is_new, codebook * (1.0 - nearest_zero), codebook)

    def set_codebook(self, centroids: np.ndarray) -> None:
        """Sets the centroids, (groups, k), with none pinned."""
        leader = self.leader()
        leader.centroids.assign(np.asarray(centroids, np.float32))
        leader.free.assign(np.ones_like(leader.free.numpy()))

    def pin_zero(self) -> None:
        """Pins the centroid nearest to zero, one per group, where none is pinned yet."""
        leader = self.leader()
        free = leader.free.numpy()
        if free.all():
            free[np.arange(len(free)), np.argmin(np.abs(leader.centroids.numpy()), axis=1)] = 0.0
            leader.free.assign(free)

    def needs_zero(self, value: np.ndarray) -> bool:
        """Whether there are zeros to preserve and no centroid is theirs."""
        zeros = self.preserve_sparsity and not np.all(value)
        return bool(zeros and self.leader().free.numpy().all())

    def grouped(self, value: np.ndarray) -> np.ndarray:
        """A kernel as one row of weights per codebook, (groups, weights)."""
        return np.stack([value[place].ravel() for place in _groups(value.shape, self._group_shape)])

    def assign(self, value: np.ndarray, *, reseed: bool = True) -> int:
        """Assigns every weight to its nearest centroid.

        Args:
            value: The latent kernel behind its mask.
            reseed: Move centroids that have no weight to where the error is largest. A codebook
                of the whole model stays as it is: one kernel cannot tell what the others use.

        Returns:
            The number of weights that changed their centroid.
        """
        if self.needs_zero(value):
            self.pin_zero()
        leader = self.leader()
        centroids, pinned = leader.centroids.numpy(), leader.free.numpy() == 0
        old = self.assignments.numpy()
        new = np.zeros_like(old)
        for group, place in enumerate(_groups(value.shape, self._group_shape)):
            weights, chosen = value[place], np.zeros(value[place].shape, np.int32)
            zero = (weights == 0) & pinned[group].any()
            usable = np.flatnonzero(~pinned[group])
            if reseed and self.scope != "model" and not zero.all():
                centroids[group] = reseed_empty(weights[~zero], centroids[group], pinned[group])
            chosen[~zero] = usable[nearest(weights[~zero], centroids[group, usable])]
            chosen[zero] = np.argmax(pinned[group])
            new[place] = chosen
        leader.centroids.assign(centroids)
        self.assignments.assign(new)
        return int(np.sum(new != old))

    def get_config(self) -> dict[str, Any]:
        own = {
            "num_clusters": self.num_clusters,
            "scope": self.scope,
            "preserve_sparsity": self.preserve_sparsity,
        }
        return {**super().get_config(), **own}


def check_clusters(num_clusters: Any) -> None:
    if not isinstance(num_clusters, int) or not 2 <= num_clusters <= 65536:
        raise ValueError(
            f"Expected num_clusters to be an integer in [2, 65536]. Received: {num_clusters!r}."
        )


def check_scope(scope: Any) -> None:
    if scope not in SCOPES:
        raise ValueError(f"Expected scope to be one of {SCOPES}. Received: {scope=}.")


def _groups(shape: tuple[int, ...], group_shape: tuple[int, ...]) -> Iterator[tuple]:
    """Yields the index expression of every group's weights."""
    for position in np.ndindex(*group_shape):
        yield tuple(p if n > 1 else slice(None) for p, n in zip(position, group_shape, strict=True))


def _upstream(tensor: keras.KerasTensor) -> list[Cluster]:
    """The clusterings of every layer that a symbolic tensor depends on."""
    found, stack = [], [tensor]
    seen: set[int] = set()
    while stack:
        call = producer(stack.pop())
        if call is None:
            continue
        operation, args, kwargs = call
        tensors = [t for t in tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
        stack.extend(t for t in tensors if id(t) not in seen)
        seen.update(id(t) for t in tensors)
        if is_compressed(operation):
            found.extend(operation.transformed.of_type(Cluster).values())
    return found
