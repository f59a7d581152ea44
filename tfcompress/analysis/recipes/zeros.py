"""The zeros of the stages "prune": what makes them in a training, and what keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import keras

from tfcompress.analysis.options.assignment import layers_by_path, set_zeros
from tfcompress.model.compressed import Compressed
from tfcompress.model.kernels import Kernel, iterate_layers, layer_kernels
from tfcompress.model.transforms import KeepMask, WeightTransform
from tfcompress.pruning.callbacks import Pruning
from tfcompress.pruning.schedules import ConstantSparsity, PruningSchedule
from tfcompress.sharing.codebook import Cluster


class Zeros:
    """Which layers of a recipe's model are pruned so far, at once or in a training.

    Attributes:
        last_step: The last step of a gradual pruning that is still to come; 0 without one.
    """

    def __init__(self) -> None:
        # Layers that hold zeros; an ordered set.
        self._kept: dict[str, None] = {}
        # Schedule, layer → how many kernels it has; and the share of zeros that it ends at.
        self._ramps: list[tuple[PruningSchedule, dict[str, int], float]] = []
        self.last_step = 0

    def set(self, model: keras.Model, shares: Mapping[str, float]) -> None:
        """Prunes layers at once.

        Args:
            model: The model, which is changed.
            shares: Layer → share of zeros.

        Raises:
            ValueError: A layer computes with other values than its weights, where 0 is not 0.
        """
        kernels = {name: list(_kernels(model, [name])) for name in shares}
        clustered = [n for n, found in kernels.items() if any(map(_is_clustered, found))]
        binary = [n for n, found in kernels.items() if not all(map(_has_zero, found))]
        if clustered or binary:
            why = "clustered" if clustered else "quantized without a level 0"
            raise ValueError(
                f"Expected layers to prune whose weights can be 0. Received: {clustered or binary},"
                f" which are {why}. Put 'prune' before that stage."
            )
        set_zeros(model, shares)
        self._kept.update(dict.fromkeys(shares))

    def add_ramp(
        self, model: keras.Model, names: Iterable[str], share: float, ramp: PruningSchedule
    ) -> None:
        """Notes layers that the next training prunes.

        Args:
            model: The model as it is now; later stages may take its layers apart.
            names: Paths of its layers.
            share: Of zeros, at the end.
            ramp: The schedule.
        """
        self._ramps.append((ramp, {n: len(list(_kernels(model, [n]))) for n in names}, share))
        self.last_step = ramp.end_step

    def callbacks(self, model: keras.Model, verbose: int) -> list[keras.callbacks.Callback]:
        """What prunes in the next training, and what keeps zeros that are there.

        Raises:
            ValueError: A layer cannot be pruned gradually as it is now.
        """
        made: list[keras.callbacks.Callback] = []
        ramping = {name for _, counts, _ in self._ramps for name in counts}
        for ramp, counts, _ in self._ramps:
            _check_ramp(model, counts)
            made.append(Pruning(ramp, layers=_those(_kernels(model, counts)), verbose=verbose))
        kept = [n for n in self._kept if n not in ramping]
        found = [k for k in _kernels(model, kept) if k.variable.trainable and not _keeps_zeros(k)]
        if found:
            # The zeros that are there, and no others: after `shrink` their share is another.
            made.append(Pruning(ConstantSparsity(0.0), layers=_those(found), verbose=0))
        return made

    def end_training(self, model: keras.Model, is_rehearsal: bool) -> None:
        """Notes what a training has pruned; of one that was left out, prunes the model at once."""
        for _, counts, share in self._ramps:
            if is_rehearsal:
                set_zeros(model, dict.fromkeys(counts, share))
            self._kept.update(dict.fromkeys(counts))
        self._ramps, self.last_step = [], 0

    def check_factorized(self, before: keras.Model, after: keras.Model) -> None:
        """Refuses layers of low rank that were pruned: the product of two factors has no zeros."""
        old, new = (
            {n: [tuple(k.variable.shape) for k in _kernels(m, [n])] for n in self._kept}
            for m in (before, after)
        )
        lost = [name for name in self._kept if old[name] != new[name]]
        if lost:
            raise ValueError(
                "Expected layers of 'factorize' without zeros of 'prune', which two factors do not "
                f"have. Received: {lost}. Put 'factorize' before 'prune'."
            )


def _check_ramp(model: keras.Model, counts: Mapping[str, int]) -> None:
    """Refuses layers that `Pruning` would leave out, or find in part alone."""
    reasons = {}
    for name, count in counts.items():
        kernels = list(_kernels(model, [name]))
        if len(kernels) != count:
            reasons[name] = "a later stage takes it apart"
        elif not all(k.variable.trainable for k in kernels):
            reasons[name] = "it is frozen"
        elif not all(map(_has_zero, kernels)):
            reasons[name] = "its weights are quantized without a level 0"
    if reasons:
        raise ValueError(
            "Expected layers that can be pruned gradually, in this training. Received: "
            + ", ".join(f"{name!r} ({why})" for name, why in reasons.items())
            + ". Prune it at once (without 'end_step'), in a training of its own, or not."
        )


def _kernels(model: keras.Model, names: Iterable[str]) -> Iterator[Kernel]:
    """The kernels of layers and of those inside them; none of a layer that is not there."""
    layers = layers_by_path(model)
    for name in names:
        for inner in iterate_layers(layers[name]) if name in layers else ():
            yield from layer_kernels(inner)


def _those(kernels: Iterable[Kernel]) -> object:
    """A predicate that holds for the layers of kernels."""
    chosen = {id(kernel.layer) for kernel in kernels}
    return lambda layer: id(layer) in chosen


def _keeps_zeros(kernel: Kernel) -> bool:
    """Whether the layer itself keeps all zeros of its kernel, as those that quantization found."""
    is_zero = kernel.variable.numpy() == 0
    masks = [t.mask.numpy() for t in _chain(kernel) if isinstance(t, KeepMask)]
    return any(not mask[is_zero].any() for mask in masks)


def _is_clustered(kernel: Kernel) -> bool:
    return any(isinstance(t, Cluster) for t in _chain(kernel))


def _has_zero(kernel: Kernel) -> bool:
    return all(t.keeps_zero for t in _chain(kernel))


def _chain(kernel: Kernel) -> list[WeightTransform]:
    layer = kernel.layer
    return layer.transforms.get(kernel.spec.name, []) if isinstance(layer, Compressed) else []
