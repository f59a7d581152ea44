"""Kernels and biases as the file must hold them: codes and scales, with batch norm folded in."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tfcompress.model.kernels import einsum_of, has_bias
from tfcompress.model.transforms import FAKE_QUANT, WeightCall
from tfcompress.quantization.fake_quant.weights import FakeQuantizeWeights
from tfcompress.quantization.operators.einsum_dense import kernel_matrix


@dataclasses.dataclass(frozen=True)
class BakedKernel:
    """A kernel as the file must hold it.

    Attributes:
        layer: Name of the Keras layer.
        keras_class: Name of its Keras class, which tells the axes.
        codes: Integer codes of the folded kernel, in Keras' layout; of an EinsumDense as a matrix
            (inputs, outputs).
        scale: Per output channel, of the folded kernel.
        bias: Folded bias per output channel, on its grid; `None` for none.
        input_scale: Scale of what the layer reads.
        num_bits: Bits of a code.
        num_pruned: How many weights are zero before they are rounded.
        packed: Whether its scheme has it packed in a convolution too.
    """

    layer: str
    keras_class: str
    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None
    input_scale: float
    num_bits: int
    num_pruned: int = 0
    packed: bool = False

    def as_matrix(self) -> BakedKernel:
        """The kernel of a convolution as that of a dense layer over its patches."""
        codes = self.codes.reshape(-1, self.codes.shape[-1])
        return dataclasses.replace(self, codes=codes, keras_class="Dense")


def bake(
    layer: keras.Layer, call_index: int = 0
) -> tuple[np.ndarray, np.ndarray | None, BakedKernel | None]:
    """The kernel and bias of one call of a compressed layer, in inference.

    Returns:
        `(kernel, bias, baked)`: float32 arrays on their grids (`bias` may be `None`), and the
        integer codes and scales, `None` for a layer whose weights are not quantized.
    """
    values, rounded = layer.transformed(call_index=call_index, training=False)
    kernel = np.asarray(values["kernel"])
    own_bias = np.asarray(layer.bias) if has_bias(layer) else None
    bias = np.asarray(values["bias"]) if "bias" in values else own_bias
    transform = layer.transformed.of_type(FakeQuantizeWeights).get("kernel")
    if transform is None or rounded is None:
        return kernel, bias, None
    shape = transform.grid.channel_shape
    scale = np.asarray(rounded.scale, np.float32)
    codes = np.round(kernel / scale.reshape(shape))
    folded = transform.folded_batch_norm(call_index)
    if folded is not None:
        batch_norm, batch_norm_call = folded
        fold = batch_norm.fold(batch_norm_call)
        factor, addend = np.asarray(fold.factor), np.asarray(fold.addend)
        bias = np.asarray((0.0 if own_bias is None else own_bias) * factor + addend, np.float32)
        # A negative γ turns the signs of its channel's codes; scales are positive.
        codes = codes * np.sign(factor).reshape(shape)
        kernel = kernel * factor.reshape(shape)
        scale = np.asarray(fold.kernel_scale)
    quantizer = transform.input_quantizer(call_index)
    baked = BakedKernel(
        layer.name,
        layer.keras_class.__name__,
        _matrix(layer, codes.astype(np.int8)),
        scale,
        bias,
        0.0 if quantizer is None else float(quantizer.scale.numpy()),
        transform.num_bits,
        _zeros_before_rounding(layer, call_index),
        transform.scheme.packed,
    )
    return kernel, bias, baked


def _matrix(layer: keras.Layer, kernel: np.ndarray) -> np.ndarray:
    """A kernel in the layout of the operator that runs it, where that is not Keras'."""
    product = einsum_of(layer) if isinstance(layer, keras.layers.EinsumDense) else None
    return kernel if product is None else kernel_matrix(kernel, product)


def _zeros_before_rounding(layer: keras.Layer, call_index: int) -> int:
    value = tf.convert_to_tensor(layer.kernel.value)
    for transform in layer.transforms["kernel"]:
        if transform.order < FAKE_QUANT:
            value = transform.apply(value, WeightCall(call_index, training=False))
    return int(np.sum(np.asarray(value) == 0))
