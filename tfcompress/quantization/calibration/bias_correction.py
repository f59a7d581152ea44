"""Bias correction: takes the mean error that rounded weights make out of each channel."""

from __future__ import annotations

import keras
import numpy as np
from keras import tree

from tfcompress.model.compressed import is_compressed
from tfcompress.model.graph import Graph, Node
from tfcompress.model.kernels import layer_kernels
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights


def correct_biases(model: keras.Model, batches: list) -> list[str]:
    """Corrects, in place, the bias of every layer with rounded weights.

    With x what the layer reads (already rounded), the channel's mean error
    E[W̃ * x] − E[W * x] is subtracted from its bias, or added to the moving mean of the batch norm
    that follows (Nagel et al. 2019, "Data-Free Quantization", eq. 13, measured on data).

    Args:
        model: A calibrated quantized model.
        batches: Calibration batches in the structure of its inputs.

    Returns:
        Names of the layers that were corrected. A layer without bias and batch norm has nothing
        to correct, and one that is called several times has no single error.
    """
    graph = Graph.from_model(model)
    corrected = []
    for node in graph.nodes:
        layer = node.operation
        if not is_compressed(layer) or len(graph.calls(layer)) > 1:
            continue
        transform = layer.transformed.of_type(FakeQuantizeWeights).get("kernel")
        if transform is None or not (layer.use_bias or transform.folded_batch_norm()):
            continue
        # Layer by layer, so that each sees the inputs that the corrected ones before it give.
        error = _mean_error(model, node, batches)
        if transform.folded_batch_norm():
            batch_norm, _ = transform.folded_batch_norm()
            batch_norm.moving_mean.assign(batch_norm.moving_mean.numpy() + error)
        else:
            layer.bias.assign(layer.bias.numpy() - error.reshape(layer.bias.shape))
        corrected.append(layer.name)
    return corrected


def _mean_error(model: keras.Model, node: Node, batches: list) -> np.ndarray:
    """E[(W̃ − W) * x] per output channel; the layer is linear in its kernel."""
    layer = node.operation
    config = layer.get_config()
    config.pop("transforms")
    config.update(activation="linear", use_bias=False, dtype="float32", name="difference")
    linear = layer.keras_class.from_config(config)
    linear.build(layer.input.shape)
    kernel = layer_kernels(layer)[0].variable.numpy()
    linear.set_weights([np.asarray(layer.effective_weights()["kernel"]) - kernel])
    reader = keras.Model(model.inputs, layer.input)
    total, count = np.zeros(()), 0
    for batch in batches:
        error = np.asarray(linear(reader(tree.flatten(batch), training=False)))
        total = total + error.sum(tuple(range(error.ndim - 1)), dtype=np.float64)
        count += int(np.prod(error.shape[:-1]))
    return np.asarray(total / count, np.float32)
