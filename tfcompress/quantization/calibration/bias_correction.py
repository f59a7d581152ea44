"""Bias correction: takes out of each channel the mean error that rounding brings into it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.model import inference
from tfcompress.model.compressed import is_compressed, without_activation
from tfcompress.model.graph import Graph, Node
from tfcompress.model.progress import Progress
from tfcompress.quantization.calibration.in_float import observed_by
from tfcompress.quantization.fake_quant.quantizers import FakeQuantize
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights

# What is measured is the mean of a difference between two runs on the same samples, which is
# certain after few of them.
_MOST_SAMPLES, _FEWEST_SAMPLES = 128, 16
# Numbers of all samples together that are held at a time: 128 MB.
_HELD_VALUES = 32 * 2**20


@dataclasses.dataclass(eq=False)
class _Corrected:
    """What is corrected: a bias, the moving mean of a batch norm, or an offset.

    Attributes:
        layer: The layer with rounded weights.
        folded: The batch norm, or the trained scale and offset, that the runtime folds into it.
        places: The calls whose outputs tell the error, one for each call of the layer.
        errors: Mean error per channel, of each such call so far.
    """

    layer: Any
    folded: Any
    places: list[Node] = dataclasses.field(default_factory=list)
    errors: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def is_shared(self) -> bool:
        return len(self.places) > 1

    def subtract(self, error: np.ndarray) -> None:
        """Takes `error` out of the output."""
        if self.folded is None:
            _add(self.layer.bias, -error)
            return
        factor = np.asarray(self.folded.factor())
        safe = np.where(factor == 0, 1.0, factor)
        before = np.where(factor == 0, 0.0, error / safe)
        if _has_moving_mean(self.folded):
            # Training moves it to the mean of what the rounded kernel gives, which is just this.
            _add(self.folded.moving_mean, before)
        elif _has_bias(self.layer):
            _add(self.layer.bias, -before)
        else:
            _add(self.folded.offset_weight, -error)


def _add(variable: keras.Variable, values: np.ndarray) -> None:
    variable.assign(variable.numpy() + np.reshape(values, variable.shape))


def _has_moving_mean(folded: Any) -> bool:
    return getattr(folded, "moving_mean", None) is not None


def _has_bias(layer: Any) -> bool:
    """Whether it has one number for each channel; the bias of an EinsumDense may have others."""
    return bool(getattr(layer, "use_bias", False))


def _can_correct(layer: Any, folded: Any) -> bool:
    """Whether there is an addend for each channel."""
    if _has_bias(layer) or (folded is not None and _has_moving_mean(folded)):
        return True
    offset = getattr(folded, "offset_weight", None)
    return offset is not None and math.prod(offset.shape) == layer.kernel.shape[-1]


class BiasCorrection:
    """Corrects the bias of every layer with rounded weights, in one sweep through a model.

    With y what a layer computes before its activation function in float and ỹ what it computes
    quantized, behind layers that are corrected already, E[ỹ] − E[y] of each channel is subtracted
    from its bias, or added to the moving mean of the batch norm that the runtime folds into it
    (Nagel et al. 2019, "Data-Free Quantization", section 4.2 and appendix D). A trained scale and
    offset behind it are folded, too: then its bias is corrected, or the offset. That takes out the
    mean error of the layer's own weights and of everything before it. The bias is rounded to the
    grid of the int32 sum as always; layers behind see what the file computes. A layer without bias
    and batch norm has nothing to correct; its error is part of that of the next layer.

    Some of the calibration data run through the quantized model once, call by call, so the cost
    grows with the number of layers. A layer that is called several times is corrected by the mean
    over its calls; the others are then corrected once more.

    Args:
        graph: Of a quantized model.
        batches: All calibration batches, in the structure of its inputs. Some of them are used.
    """

    def __init__(self, graph: Graph, batches: Sequence[Any]):
        self.graph = graph
        self.corrected = _find_corrected(graph)
        self.places = {place: item for item in self.corrected for place in item.places}
        self.chosen = {i: batches[i] for i in _choose(graph, batches)}
        self._totals: dict[Node, list[tuple[np.ndarray, int]]] = {p: [] for p in self.places}

    def call_measured(self, node: Node, args: tuple, kwargs: dict) -> Any:
        """What a call gives; its mean before the activation function is noted down.

        To be used while the model computes in float, on the batches `chosen`.
        """
        if node not in self.places:
            return inference.call_in_inference(node, args, kwargs)
        activation = getattr(node.operation, "activation", None)
        with without_activation(node.operation):
            values = inference.call_in_inference(node, args, kwargs)
        self._totals[node].append(_total(values))
        return values if activation is None else activation(values)

    def correct(self) -> list[str]:
        """Corrects the biases in place, once the ranges of activations are set.

        Returns:
            Names of the layers that were corrected.
        """
        shared = [item for item in self.corrected if item.is_shared]
        single = [item for item in self.corrected if not item.is_shared]
        steps = len(self.graph.nodes) * (2 if shared else 1)
        with Progress("bias correction", steps) as progress:
            if self.corrected:
                self._sweep(self.corrected, progress)
            for item in shared:
                item.subtract(np.mean(item.errors, axis=0))
            if shared and single:
                self._sweep(single, progress)
        return list(dict.fromkeys(item.layer.name for item in self.corrected))

    def _sweep(self, items: Sequence[_Corrected], progress: Progress) -> None:
        """Goes through the quantized model; errors of shared layers are only noted down."""
        for item in items:
            item.errors.clear()

        def call(node: Node, calls: list[tuple[tuple, dict]]) -> list:
            item = self.places.get(node)
            if item is not None and item in items:
                with _unrounded(node):
                    totals = [_total(inference.call_in_inference(node, *c)) for c in calls]
                error = (_mean(totals) - _mean(self._totals[node])).astype(np.float32)
                # Where values explode there is no mean; calibration warns of such layers.
                error = np.where(np.isfinite(error), error, np.float32(0))
                item.errors.append(error)
                if not item.is_shared:
                    item.subtract(error)
            progress.advance()
            return [inference.call_in_inference(node, *c) for c in calls]

        inference.run_together(self.graph, list(self.chosen.values()), call)


def has_enough_samples(batches: Sequence[Any]) -> bool:
    """Whether the mean error is known so well that taking it out hardly adds to the error.

    From n samples it is known up to a variance of 1/n of that of a sample's error.
    """
    return sum(len(tree.flatten(batch)[0]) for batch in batches) >= _FEWEST_SAMPLES


def _find_corrected(graph: Graph) -> list[_Corrected]:
    found: dict[Any, _Corrected] = {}
    calls = {(n.operation, n.kwargs.get("call_index", 0)): n for n in graph.nodes}
    for node in graph.nodes:
        layer, call_index = node.operation, node.kwargs.get("call_index", 0)
        if not is_compressed(layer):
            continue
        transform = layer.transformed.of_type(FakeQuantizeWeights).get("kernel")
        if transform is None:
            continue
        folded = transform.folded_batch_norm(call_index)
        if folded is not None and folded in calls:
            if _can_correct(layer, folded[0]):
                item = found.setdefault(folded[0], _Corrected(layer, folded[0]))
                item.places.append(calls[folded])
        elif _has_bias(layer):
            item = found.setdefault(layer, _Corrected(layer, None))
            item.places.append(node)
    return list(found.values())


def _choose(graph: Graph, batches: Sequence[Any]) -> list[int]:
    """Positions of batches from all over the data, as many as time and memory allow."""
    most = min(_MOST_SAMPLES, max(_FEWEST_SAMPLES, _HELD_VALUES // inference.most_values(graph)))
    sizes = [len(tree.flatten(batch)[0]) for batch in batches]
    wanted = min(len(batches), -(-most // max(sizes)))
    return sorted({round(i) for i in np.linspace(0, len(batches) - 1, wanted)})


@contextlib.contextmanager
def _unrounded(node: Node) -> Iterator[None]:
    """The call gives its int32 sum as a value: no activation function, not rounded to codes."""
    quantizer = _sum_quantizer(node)
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_activation(node.operation))
        if quantizer is not None:
            stack.enter_context(observed_by({quantizer: _ignore}))
        yield


def _sum_quantizer(node: Node) -> FakeQuantize | None:
    call_index = node.kwargs.get("call_index", 0)
    if is_compressed(node.operation):
        transform = node.operation.transformed.of_type(FakeQuantizeWeights)["kernel"]
        return transform.sum_quantizer(call_index)
    return node.operation.sum_quantizers.get(call_index)


def _ignore(values: tf.Tensor) -> None:
    pass


def _total(values: tf.Tensor) -> tuple[np.ndarray, int]:
    """Sum over everything but the channels, and of how many values per channel."""
    count = int(np.prod(values.shape[:-1]))
    means = tf.reduce_mean(tf.cast(values, tf.float32), tf.range(tf.rank(values) - 1))
    return count * means.numpy().astype(np.float64), count


def _mean(parts: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    return np.sum([total for total, _ in parts], axis=0) / sum(count for _, count in parts)
